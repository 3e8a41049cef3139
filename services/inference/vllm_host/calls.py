"""One request, from its frame through vLLM's application and back. The path of every token: keep it lean."""

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from . import frames
from .stats import CALL, CallStats

if TYPE_CHECKING:
    from .host import Link

_HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]
_AT_ONCE = 4
"""Pieces of a stream that never wait: with the first of them a client sees the first token."""
_CANCEL_S = 2.0
"""How long the application may take to notice that its client has gone, before its task is cancelled."""


class GoneError(OSError):
    """The client has gone; what an application may expect from its `send`."""


class Call:
    """A request in flight."""

    def __init__(self, stream: int, payload: bytes, link: "Link", engine: Any) -> None:
        self._stream = stream
        self._link = link
        self._engine = engine
        self._path = frames.PATHS[payload[0]]
        self._body: bytes | None = payload[1:]
        self._stats = CallStats()
        self._untaken = 0
        self._pieces = 0
        self._next = 0.0
        self._held: list[bytes] = []
        self._room: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = False
        self._answered = False
        self._task: asyncio.Task[None] | None = None

    def start(self, app: Any, calls: dict[int, "Call"]) -> None:
        """Have ``app`` answer; at the end the call takes itself out of ``calls``."""
        context = contextvars.copy_context()
        context.run(CALL.set, self._stats)
        self._task = asyncio.get_running_loop().create_task(self._run(app, calls), context=context)

    async def _run(self, app: Any, calls: dict[int, "Call"]) -> None:
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "POST", "scheme": "http", "path": self._path, "raw_path": self._path.encode(),
            "query_string": b"", "root_path": "", "headers": _HEADERS, "client": None, "server": ("localhost", 80),
            "state": {},
        }  # fmt: skip
        try:
            await app(scope, self._receive, self._send)
        except Exception as exc:
            # The application has told its client, if it could; what is missing is told here.
            if not self._answered:
                self._break(500, f"the engine failed ({type(exc).__name__})")
        finally:
            calls.pop(self._stream, None)
            if not self._ended:
                self._ended = True
                self.release()
                self._link.send(frames.END, self._stream, frames.encode(self._stats.stats))

    async def _receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._ended or self._gone.done():
            raise GoneError
        if self._engine.errored:
            self.fail("the engine died")
            raise GoneError
        if message["type"] == "http.response.body":
            body = message["body"]
            if body:
                self._answered = True
                self._piece(body)
                self._untaken += len(body)
                if self._untaken > frames.WINDOW:
                    await self._until_taken()
        elif message["type"] == "http.response.start":
            headers = dict(message["headers"])
            head = frames.Head(
                message["status"], headers.get(b"content-type", b"application/json").decode("latin-1"),
                headers.get(b"retry-after", b"").decode("latin-1"),
            )  # fmt: skip
            self._link.send(frames.HEAD, self._stream, frames.encode(head))

    def _piece(self, body: bytes) -> None:
        """Each piece costs the worker, the bus, the router and the client: those that come fast go out together."""
        if self._held:
            self._held.append(body)
            return
        now = asyncio.get_running_loop().time()
        self._pieces += 1
        if self._pieces > _AT_ONCE and now < self._next:
            self._held.append(body)
            self._link.hold(self, self._next - now)
            return
        self._next = now + self._link.join_s
        self._link.send(frames.PIECE, self._stream, body)

    def release(self) -> None:
        """Send what is held back."""
        held, self._held = self._held, []
        if held and not self._gone.done():
            self._next = asyncio.get_running_loop().time() + self._link.join_s
            self._link.send(frames.PIECE, self._stream, b"".join(held))

    async def _until_taken(self) -> None:
        while self._untaken > frames.WINDOW and not self._gone.done():
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def taken(self, size: int) -> None:
        """The worker has taken ``size`` bytes more."""
        self._untaken -= size
        self._wake()

    def cancel(self) -> None:
        """The worker wants no more of it."""
        if self._gone.done():
            return
        self._gone.set_result(None)
        self._wake()
        if self._task is not None:
            asyncio.get_running_loop().call_later(_CANCEL_S, self._task.cancel)

    def fail(self, message: str) -> None:
        """End it with an error in the engine's stead."""
        self._break(502, message)
        self.cancel()

    def _break(self, status: int, message: str) -> None:
        if not self._ended:
            self._ended = True
            self.release()
            self._link.send(frames.BROKEN, self._stream, frames.encode(frames.Broken(status, message)))

    def _wake(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
