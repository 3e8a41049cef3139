"""Inference over the bus: `cypria.request.chat|completions|embeddings`, same bodies, keys and rules as over HTTP.

Plain nats-py, like everything that carries tokens. Replies go to the reply subject: each message has the header
`Cypria-Status`, the last one `Cypria-Final: 1`; a streamed answer comes in several, of at most 256 KiB each.
"""

import asyncio
import contextlib

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from schemas import subjects
from schemas.v1.inference import MAX_PIECE, ReplyHead
from services._runtime.bus import TRANSIENT, Bus
from services._runtime.telemetry import get_logger
from services.router.domain.call import Call, Reply
from services.router.domain.errors import broken, refusal
from services.router.domain.refusals import NotFound, Refused
from services.router.domain.request import request_id
from services.router.edge.gate import Gate, common_headers, new_id, too_large

log = get_logger(__name__)

QUEUE = "routers"
BUS = "bus"
"""Where callers on the bus come from: they share one address."""
STATUS = "Cypria-Status"
FINAL = "Cypria-Final"
ROUTES = frozenset({"chat", "completions", "embeddings"})
DRAIN_S = 1.5


class BusSink:
    """An answer on its way over the bus. The last piece is held back, so that it can be marked."""

    def __init__(self, bus: Bus, to: str) -> None:
        self._bus = bus
        self._to = to
        self._headers: dict[str, str] = {}

    async def reply(self, call: Call, reply: Reply) -> None:
        """A whole answer."""
        await self.start(call, ReplyHead(reply.status, reply.content_type, reply.retry_after))
        await self.finish(reply.body)

    async def start(self, call: Call, head: ReplyHead) -> None:
        """What every piece says."""
        self._headers = {STATUS: str(head.status), "content-type": head.content_type, **common_headers(call)}
        if head.retry_after:
            self._headers["Retry-After"] = str(head.retry_after)

    async def write(self, piece: bytes) -> None:
        """The next piece."""
        for at in range(0, len(piece), MAX_PIECE):
            await self._send(piece[at : at + MAX_PIECE], self._headers)

    async def finish(self, piece: bytes) -> None:
        """The last piece."""
        cut = max(0, (len(piece) - 1) // MAX_PIECE * MAX_PIECE)
        await self.write(piece[:cut])
        await self._send(piece[cut:], {**self._headers, FINAL: "1"})

    async def abort(self) -> None:
        """End an answer that is not whole: its last message says 500 and why."""
        await self.refuse(broken(), self._headers.get("X-Request-ID", ""))

    async def refuse(self, reply: Reply, own_id: str) -> None:
        """An answer to a request that was never admitted."""
        headers = {STATUS: str(reply.status), "content-type": reply.content_type, "X-Request-ID": own_id, FINAL: "1"}
        if reply.retry_after:
            headers["Retry-After"] = str(reply.retry_after)
        await self._send(reply.body, headers)

    async def _send(self, payload: bytes, headers: dict[str, str]) -> None:
        try:
            await self._bus.nc.publish(self._to, payload, headers=headers)
        except NatsError as exc:
            log.warning("bus_reply_lost", error=repr(exc))


class BusEdge:
    """One router of the queue group takes each request."""

    def __init__(self, bus: Bus, gate: Gate) -> None:
        self._bus = bus
        self._gate = gate
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe, and wait until the server knows."""
        self._subscription = await self._bus.nc.subscribe(subjects.REQUEST, queue=QUEUE, cb=self._received)
        with contextlib.suppress(*TRANSIENT):  # after a reconnect it is told again
            await self._bus.nc.flush(timeout=5)

    async def stop(self) -> None:
        """Take no more, and give what is in flight a moment."""
        if self._subscription is not None and self._bus.connected:
            await self._subscription.unsubscribe()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _received(self, msg: Msg) -> None:
        if not msg.reply.startswith(subjects.CALLER_INBOX):
            log.warning("bus_request_without_inbox", subject=msg.subject)
            return
        task = asyncio.create_task(self._serve(msg), name="bus-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, msg: Msg) -> None:
        sink = BusSink(self._bus, msg.reply)
        headers = {name.lower(): value for name, value in (msg.headers or {}).items()}
        own_id = headers.get("x-request-id", "").encode("utf-8", "surrogateescape")
        try:
            call = self._admit(msg, headers, own_id)
        except Refused as exc:
            self._gate.meters.refuse(exc.status)
            await sink.refuse(refusal(exc), request_id(own_id) or new_id())
            return
        await self._gate.server.serve(call, sink)

    def _admit(self, msg: Msg, headers: dict[str, str], own_id: bytes) -> Call:
        kind = msg.subject.rsplit(".", 1)[-1]
        principal = self._gate.enter(headers.get("authorization"), BUS)
        if kind not in ROUTES:
            known = ", ".join(sorted(ROUTES))
            raise NotFound(f"there is no cypria.request.{kind[:64]}: use one of {known}", code="unknown_subject")
        if len(msg.data) > self._gate.max_body:
            raise too_large(self._gate.max_body)
        units = {
            source: headers[name].strip().encode("utf-8", "surrogateescape")
            for name, source in (("x-session-id", "x_session_id"), ("x-user-id", "x_user_id"))
            if name in headers
        }
        return self._gate.call(
            route=kind, body=msg.data, principal=principal, units=units, own_id=own_id, host=BUS,
            traceparent=headers.get("traceparent", ""),
        )  # fmt: skip
