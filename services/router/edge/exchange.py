"""One inference request on one HTTP connection, from its head to the last byte of its answer.

It takes the place of uvicorn's request cycle and of ASGI on this path alone: neither a task, a scope nor a message for
each part of a request is needed there, which halves what HTTP costs (`benchmarks/hot_path.py`).
"""

from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from schemas.v1.inference import ReplyHead
from services._runtime.health import SHIELD
from services.router.domain.auth import Principal
from services.router.domain.call import Call, Reply
from services.router.domain.errors import refusal
from services.router.domain.refusals import Refused, TooLarge, UnsupportedMedia
from services.router.domain.request import request_id
from services.router.edge.gate import Gate, common_headers, new_id, too_large

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PLAIN = frozenset({b"", b"identity"})
_UNIT_HEADERS = {b"x-session-id": "x_session_id", b"x-user-id": "x_user_id"}


class Owner(Protocol):
    """The connection, as an exchange sees it."""

    transport: Any
    flow: FlowControl

    def answered(self, exchange: "Exchange") -> None:
        """The exchange has sent its last byte."""


class _NoEvent:
    """uvicorn's protocol sets an event of its cycle; nobody waits for this one."""

    def set(self) -> None:
        """Nothing."""


class Exchange:
    """``turn``: earlier requests of the connection have been answered, so that this one may write."""

    message_event = _NoEvent()

    __slots__ = (
        "_chunked", "_gate", "_owner", "_parts", "_size", "announced", "call", "disconnected", "expects", "host",
        "keep_alive", "more_body", "on_response", "own_id", "principal", "refused", "response_complete",
        "response_started", "route", "traceparent", "turn", "units",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, gate: Gate, route: str, headers: list[tuple[bytes, bytes]], host: str, *, keep_alive: bool,
        chunked: bool,
    ) -> None:  # fmt: skip
        self._owner = owner
        self._gate = gate
        self._parts: list[bytes] = []
        self._size = 0
        self._chunked = chunked
        self.route = route
        self.host = host
        self.keep_alive = keep_alive
        self.own_id: bytes | None = None
        self.traceparent = ""
        self.announced = 0
        self.expects = False
        self.units: dict[str, bytes] = {}
        self.principal: Principal | None = None
        self.refused: Refused | None = None
        self.call: Call | None = None
        self.turn = False
        self.more_body = True
        self.response_started = self.response_complete = self.disconnected = False
        self.on_response: Callable[[], None] | None = None
        self._enter(headers)

    def _enter(self, headers: list[tuple[bytes, bytes]]) -> None:
        authorization: str | None = None
        plain = True
        for name, value in headers:
            if name == b"authorization":
                authorization = value.decode("latin-1")
            elif name == b"content-length":
                self.announced = int(value)
            elif name == b"x-request-id":
                self.own_id = value
            elif name == b"traceparent":
                self.traceparent = value.decode("latin-1")
            elif name in _UNIT_HEADERS:
                self.units[_UNIT_HEADERS[name]] = value.strip()
            elif name == b"expect":
                self.expects = self._chunked and value.lower() == b"100-continue"  # HTTP/1.0 knows no such answer
            elif name == b"content-encoding":
                plain = value.strip().lower() in _PLAIN
        self._admit(authorization, plain=plain)

    def _admit(self, authorization: str | None, *, plain: bool) -> None:
        try:
            self._gate.address(self.host)
            self.principal = self._gate.enter(authorization, self.host)
            if self.announced > self._gate.max_body:
                raise too_large(self._gate.max_body)
            if not plain:
                raise UnsupportedMedia("the body has a Content-Encoding: send it as plain JSON")
        except Refused as exc:
            # With its traceback it would hold this exchange, which holds it: garbage that only a collection frees.
            self.refused = exc.with_traceback(None)

    @property
    def ready(self) -> bool:
        """Whether it can be answered now."""
        return self.turn and (self.refused is not None or not self.more_body)

    def take(self, piece: bytes) -> None:
        """A part of the body."""
        self._size += len(piece)
        if self.refused is None:
            self._parts.append(piece)
            if self._size > self._gate.max_body:
                self.refused = too_large(self._gate.max_body)
                self._parts.clear()

    @property
    def taken(self) -> int:
        """Bytes of the body so far, kept or not."""
        return self._size

    async def run(self) -> None:
        """Serve the request."""
        gate = self._gate
        if self.refused is not None or self.principal is None:
            self._refuse(self.refused or too_large(gate.max_body))
            return
        try:
            body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            call = self.call = gate.call(
                route=self.route,
                body=body,
                principal=self.principal,
                units=self.units,
                own_id=self.own_id,
                host=self.host,
                traceparent=self.traceparent,
            )
        except Refused as exc:
            self._refuse(exc)
            return
        if self.disconnected:
            call.gone = True
        await gate.server.serve(call, self)

    def _refuse(self, exc: Refused) -> None:
        self._gate.meters.refuse(exc.status)
        headers = {"X-Request-ID": request_id(self.own_id) or new_id(), **SHIELD, **exc.headers()}
        if self.more_body and (self.expects or exc.status == TooLarge.status):
            self.keep_alive = False  # whether the body will come is anybody's guess, or it is not waited for
        self._whole(refusal(exc), headers)

    async def reply(self, call: Call, reply: Reply) -> None:
        """A whole answer."""
        headers = common_headers(call)
        if reply.retry_after:
            headers["Retry-After"] = str(reply.retry_after)
        self._whole(reply, headers)

    async def start(self, call: Call, head: ReplyHead) -> None:
        """Status and headers; the body is chunked, or for HTTP/1.0 ends with the connection."""
        headers = common_headers(call)
        headers["Content-Type"] = head.content_type
        if head.content_type.startswith("text/event-stream"):
            headers["Cache-Control"] = "no-cache"
            headers["X-Accel-Buffering"] = "no"
        if self._chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            self.keep_alive = False
        self.response_started = True
        if not self.disconnected:
            self._owner.transport.write(self._head(head.status, headers))

    async def write(self, piece: bytes) -> None:
        """The next chunk; waits while the client takes no more."""
        flow = self._owner.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if not self.disconnected:
            self._owner.transport.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self._chunked else piece)

    async def finish(self, piece: bytes) -> None:
        """The last chunk."""
        if piece:
            await self.write(piece)
        if self._chunked and not self.disconnected:
            self._owner.transport.write(b"0\r\n\r\n")
        self._complete()

    async def abort(self) -> None:
        """Close without the last chunk, by which a client knows that something is missing."""
        self.disconnected = True
        self.keep_alive = False
        self._complete()

    def _whole(self, reply: Reply, headers: dict[str, str]) -> None:
        headers["Content-Type"] = reply.content_type
        headers["Content-Length"] = str(len(reply.body))
        self.response_started = True
        if not self.disconnected:
            self._owner.transport.write(self._head(reply.status, headers) + reply.body)
        self._complete()

    def _head(self, status: int, headers: dict[str, str]) -> bytes:
        if not self.keep_alive:
            headers["Connection"] = "close"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header of the answer has a line break in it")
        return STATUS_LINE[status] + lines.encode("latin-1", "replace") + b"\r\n"

    def _complete(self) -> None:
        if not self.response_complete:
            self.response_complete = True
            self._owner.answered(self)
