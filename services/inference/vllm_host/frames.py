"""Frames between a worker and the host of its vLLM engine, over a pair of sockets.

A frame is the length of its payload, its kind, the number of its stream (0: of none), and the payload. Numbers are
little-endian. Nothing but the standard library and msgspec may be imported here.

The worker sends START, then REQUEST, CANCEL, TAKEN, and at last CLOSE. The host sends PROGRESS while it loads, then
READY or FAILED, HEALTH ten times a second, and for each stream HEAD, PIECE..., END, or BROKEN instead of what
is missing. DEAD is its last word when the engine has died.
"""

import struct
from typing import Any

import msgspec

START, REQUEST, CANCEL, TAKEN, CLOSE = range(1, 6)
PROGRESS, READY, FAILED, HEALTH, HEAD, PIECE, END, BROKEN, DEAD = range(11, 20)

CHAT, COMPLETIONS, EMBEDDINGS = range(3)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""Of the routes by number, which is the first byte of a REQUEST; its body follows."""

WINDOW = 256 * 1024
"""Bytes of a stream that the host sends before the worker has taken any."""
HEALTH_S = 0.1

LASTING = (ValueError, TypeError, LookupError, ImportError, NotImplementedError)
"""Why a load fails for good: the files, the room or the configuration are at fault, and another try would end alike."""

_HEADER = struct.Struct("<IBI")
_COUNT = struct.Struct("<I")


class Start(msgspec.Struct):
    """What to load. ``args`` are vLLM's arguments by their Python names; ``defaults`` hold where those say nothing.

    ``lora``: the directory of an adapter that ``name`` stands for; the model itself is then called ``base``.
    ``join_s``: pieces of one stream that come within so many seconds go out as one.
    """

    path: str
    name: str
    args: dict[str, Any]
    defaults: dict[str, Any] = {}
    base: str = ""
    lora: str = ""
    join_s: float = 0.0


class Progress(msgspec.Struct):
    """What is being done, and how much of it, 0 to 1; negative: not known."""

    doing: str
    fraction: float = -1.0


class Ready(msgspec.Struct):
    """The engine answers requests. ``generates``: texts; ``embeds``: vectors."""

    version: str
    generates: bool
    embeds: bool
    devices: int
    pids: list[int]


class Failed(msgspec.Struct):
    """Why it could not be loaded. ``lasting``: another try would end in the same way."""

    reason: str
    lasting: bool


class Health(msgspec.Struct):
    """How the engine is. ``quiet_s``: for how long its core has shown no life; ``pids``: all but the host's."""

    running: int
    waiting: int
    kv_cache: float
    quiet_s: float
    pids: list[int]


class Head(msgspec.Struct):
    """Status and headers of an answer."""

    status: int
    content_type: str
    retry_after: str = ""


class Stats(msgspec.Struct, omit_defaults=True):
    """Of one request, at its end; -1: not known. ``first_token_at`` is on the system's monotonic clock, in seconds.

    ``device_s``: every moment in which the engine worked, divided equally among the sequences that ran in it, summed
    over those of this request, times the number of devices.
    """

    queue_s: float = -1.0
    first_token_at: float = -1.0
    device_s: float = 0.0
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1


class Broken(msgspec.Struct):
    """Why a stream has no end."""

    status: int
    message: str


Frame = tuple[int, int, bytes]
"""Kind, stream, payload."""

encode = msgspec.json.Encoder().encode


def header(kind: int, stream: int, size: int) -> bytes:
    """What goes before a payload of ``size`` bytes."""
    return _HEADER.pack(size, kind, stream)


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEADER.pack(len(payload), kind, stream) + payload


def taken(stream: int, size: int) -> bytes:
    """The frame that says that ``size`` bytes more of a stream were taken."""
    return frame(TAKEN, stream, _COUNT.pack(size))


def count(payload: bytes) -> int:
    """The number in a TAKEN frame."""
    (number,) = _COUNT.unpack(payload)
    return int(number)


class Splitter:
    """Cuts frames out of a byte stream."""

    __slots__ = ("_need", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._need:
                return []
            data = bytes(rest)
            self._rest = bytearray()
        frames: list[Frame] = []
        at, size, fixed = 0, len(data), _HEADER.size
        self._need = fixed
        while size - at >= fixed:
            length, kind, stream = _HEADER.unpack_from(data, at)
            end = at + fixed + length
            if end > size:
                self._need = fixed + length
                break
            frames.append((kind, stream, data[at + fixed : end]))
            at = end
        if at < size:
            self._rest = bytearray(data[at:])
        return frames
