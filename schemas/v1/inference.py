"""Router <-> worker: the request, the reply frames, heartbeats and flow control.

Not CloudEvents: this path carries every token. Both directions put a small JSON head in front of the
bytes instead of using NATS headers, whose parsing costs more than all the rest (docs/decisions/0003).

Request payload on `cypria.infer.<model>.<worker>`: one frame of kind HEAD, head = InferRequest, body = the
client's body unchanged. Reply payloads to the inbox named in the request, in order:

* ``SINGLE``  head = ReplyHead + Final: a whole non-streamed reply that fits in one message;
* ``HEAD``    head = ReplyHead, body = first bytes; then any number of
* ``CHUNK``   no head: more bytes of the body (for streams: whole server-sent events); and at last
* ``FINAL``   head = Final, body = last bytes (may be empty).

A message is at most MAX_PIECE bytes of body. HEAD and CHUNK each use one credit; SINGLE and FINAL none.
"""

import struct
from typing import Any

import msgspec

MAX_PIECE = 256 * 1024
INITIAL_CREDIT = 64
"""Pieces a worker may send before the router has granted more."""
KEEPALIVE_S = 1.0
ROUTER_LOST_S = 5.0
"""A worker aborts the generations of a router that has been silent for this long."""
HEARTBEAT_S = 0.25
MISSED_HEARTBEATS = 3

SINGLE, HEAD, CHUNK, FINAL = b"S", b"H", b"C", b"F"
_LEN = struct.Struct("<I")


class InferRequest(msgspec.Struct, omit_defaults=True):
    """Head of a request. ``route``: chat, completions, embeddings or generate. ``reply`` is not here: NATS has it.

    ``stream`` as the client asked; ``caller`` is a name for fairness between callers, with `/` and a hash of whom it calls for where that is known; ``deadline_ms``, a duration from arrival, bounds the
    wait for a place. ``trace`` is the sender's W3C traceparent, of a request that is traced. ``request_id`` is the id that
    the client was told, "" for one that it chose itself: it is shown on the worker's `/metrics`.
    """

    id: str
    router: str
    route: str
    stream: bool = False
    caller: str = ""
    deadline_ms: int = 0
    credit: int = INITIAL_CREDIT
    trace: str = ""
    request_id: str = ""


class ReplyHead(msgspec.Struct, omit_defaults=True):
    """Status and headers of a reply. ``retry_after`` in seconds, 0 for none."""

    status: int = 200
    content_type: str = "application/json"
    retry_after: int = 0


class Final(msgspec.Struct, omit_defaults=True):
    """What the worker knows at the end. Times in microseconds on the worker's monotonic clock; -1 = unknown.

    ``outcome`` is a value of `schemas.v1.common.Outcome`; ``error`` is the OpenAI error type where one ended it.
    ``reset`` says that nothing of the request reached an engine, so that it may be tried elsewhere.
    """

    outcome: str = "ok"
    digest: str = ""
    ttft_us: int = -1
    itl_us: int = -1
    queue_us: int = -1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int = 0
    gpu_us: int = 0
    error: str = ""
    reset: bool = False


class SingleHead(msgspec.Struct, omit_defaults=True):
    """Head of a SINGLE frame."""

    head: ReplyHead
    final: Final


class Heartbeat(msgspec.Struct, omit_defaults=True):
    """Load and state of one worker of one model, every HEARTBEAT_S on `cypria.heartbeat.<model>.<worker>`.

    ``state`` is one of registered, verifying, loading, warming, ready, draining, unloaded, failed; requests go
    only to ``ready`` ones. ``free`` = slots still free; ``capacity`` = max_concurrency; ``queued`` = waiting.
    ``timeout_ms``: the model's limit to the first byte and between chunks; ``total_timeout_ms`` overall.
    ``stalled``: the engine has shown no life for so long that nothing more should be sent.
    ``generation`` is that of the registry's entry which this engine was loaded for, 0 where there was none; ``next_*``
    tell of another that is being loaded beside it, ``next_state`` empty when there is none.
    ``progress`` of the present step (of ``next_state`` if there is one), 0 to 1; negative: not known. ``idle_s``: seconds since the last request, negative
    while one is here. Figures of the engine and of its processes are -1 where nobody knows them: ``kv_cache`` is the share of the
    cache in use, 0 to 1; ``cpu`` is cores in use; ``gpu`` the device's utilization, 0 to 1.
    """

    model: str
    worker: str
    state: str
    digest: str = ""
    engine: str = ""
    capacity: int = 0
    free: int = 0
    queued: int = 0
    running: int = 0
    reason: str = ""
    memory_bytes: int = 0
    timeout_ms: int = 60_000
    total_timeout_ms: int = 600_000
    created: int = 0
    stalled: bool = False
    pool: str = ""
    generation: int = 0
    version: str = ""
    next_generation: int = 0
    next_state: str = ""
    next_reason: str = ""
    progress: float = -1.0
    idle_s: float = -1.0
    engine_running: int = -1
    engine_waiting: int = -1
    kv_cache: float = -1.0
    cpu: float = -1.0
    gpu: float = -1.0
    gpu_memory_bytes: int = 0
    restarts: int = 0


class Flow(msgspec.Struct, omit_defaults=True):
    """One message of a router to a worker on `cypria.flow.<worker>`; also the keep-alive of its streams.

    ``credit`` adds pieces to a stream by request id; ``cancel`` lists request ids to abort.
    """

    router: str
    credit: dict[str, int] = {}
    cancel: list[str] = []


_encode = msgspec.json.Encoder().encode
_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    t: msgspec.json.Decoder(t) for t in (InferRequest, ReplyHead, Final, SingleHead)
}


class FrameError(ValueError):
    """A payload that is not a frame of this protocol; the message says why."""


def pack(kind: bytes, head: msgspec.Struct | None, body: bytes = b"") -> bytes:
    """A frame: kind, length of the head, head as JSON, body. CHUNK has no head and no length."""
    if head is None:
        return kind + body
    raw = _encode(head)
    return b"".join((kind, _LEN.pack(len(raw)), raw, body))


def kind_of(payload: bytes) -> bytes:
    """The frame's kind byte; raises FrameError when empty."""
    if not payload:
        raise FrameError("empty frame")
    return payload[:1]


def unpack(payload: bytes, head_type: type[Any]) -> tuple[Any, bytes]:
    """(head, body) of a frame with a head; raises FrameError when it is malformed."""
    if len(payload) < 5:
        raise FrameError(f"frame of {len(payload)} bytes is shorter than its fixed part")
    (size,) = _LEN.unpack_from(payload, 1)
    end = 5 + size
    if end > len(payload):
        raise FrameError(f"head of {size} bytes does not fit in a frame of {len(payload)}")
    try:
        head = _DECODERS[head_type].decode(payload[5:end])
    except msgspec.DecodeError as exc:
        raise FrameError(f"bad head: {exc}") from exc
    return head, payload[end:]


encode = _encode
decode_heartbeat = msgspec.json.Decoder(Heartbeat).decode
decode_flow = msgspec.json.Decoder(Flow).decode
