"""HTTP/1.1 POST over kept connections: the little that an engine's client needs, at a third of the CPU.

aiohttp's client took 110 of the 150 microseconds that a whole request may cost; the parsing here is llhttp's.
"""

import asyncio
import ssl
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import httptools

_HIGH_WATER = 256 * 1024
_IDLE_S = 4.0
"""Shorter than the five seconds of common servers, so that no request goes out on a connection being closed."""
_TICK_S = 0.1


class HttpError(Exception):
    """The exchange failed."""


class ConnectError(HttpError):
    """No connection: nothing was sent."""


class BrokenError(HttpError):
    """The connection ended, or did not speak HTTP, before the response was whole."""


class SlowError(HttpError):
    """The next byte did not come in time."""


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, pool: "HttpPool") -> None:
        self._pool = pool
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._sized = False
        self._started = False
        self._complete = True
        self._excess = False
        self._error: HttpError | None = None
        self.closed = False
        self.reusable = False
        self.waiting_since = 0.0
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._complete:
            self.close()  # a server that speaks unasked cannot be trusted with the next request
            return
        self.waiting_since = self._pool.now()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(BrokenError(f"not HTTP: {exc}"))
            self.close()
        if self._excess:
            self.close()
        if self._buffered > _HIGH_WATER and not self._paused and not self.closed:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.closed = True
        if not self._complete:
            if exc is None and self._started and not self._sized:
                self._complete = True  # a body without a length ends with its connection
            else:
                self._fail(BrokenError(f"connection lost: {exc!r}" if exc else "connection closed"))
        self._wake()

    # httptools

    def on_message_begin(self) -> None:
        """See httptools."""
        self._excess = self._complete  # an answer that nobody asked for, behind ours: none of it may get into ours

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        if self._excess:
            return
        key = name.decode("latin-1").lower()
        self.headers[key] = value.decode("latin-1")
        if key in {"content-length", "transfer-encoding"}:
            self._sized = True

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._excess:
            return
        self.status = self._parser.get_status_code()
        self._started = self.status >= 200

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        if self._excess:
            return
        self._pieces.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._excess:
            return
        if not self._started:  # 100 Continue and its like: the response is still to come
            self.headers = {}
            return
        self._complete = True
        self.reusable = self._parser.should_keep_alive()

    # the exchange

    async def exchange(self, head: bytes, body: bytes) -> None:
        """Send a request and wait for the head of its response. Raises HttpError."""
        self.headers, self.status, self.reusable = {}, 0, False
        self._sized = self._started = self._complete = False
        self._transport.writelines((head, body)) if len(body) > 65536 else self._transport.write(head + body)
        while not self._started:
            await self._wait()

    async def piece(self) -> bytes:
        """What has come of the body since; empty at its end. Raises HttpError."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._wait()
        data = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def body(self) -> bytes:
        """The rest of the body. Raises HttpError."""
        parts = []
        while part := await self.piece():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def done(self) -> bool:
        """Whether the response has been read to its end."""
        return self._complete and not self._pieces

    def overdue(self, now: float, limit_s: float) -> bool:
        """Whether somebody has waited for the next byte for longer than ``limit_s``."""
        return self._waiter is not None and now - self.waiting_since > limit_s

    def give_up(self) -> None:
        """End the wait with SlowError."""
        self._fail(SlowError("no byte in time"))
        self._wake()

    def close(self) -> None:
        """Close at once: the server sees that nobody listens."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        if self.closed:
            raise BrokenError("connection closed")
        self.waiting_since = self._pool.now()
        self._waiter = self._pool.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._error is not None and not self._pieces:
            raise self._error

    def _fail(self, error: HttpError) -> None:
        self._error = self._error or error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpPool:
    """Connections to one server. ``connect_s`` bounds connecting, ``read_s`` the wait for each next byte (seconds)."""

    def __init__(self, base_url: str, headers: dict[str, str], *, connect_s: float, read_s: float) -> None:
        url = urlsplit(base_url)
        if not url.hostname or url.username or url.query or url.fragment:
            # Not shown: a password in it would get into the model's reason.
            raise ValueError("base_url: give http(s)://host[:port]/path, and keys in api_key_env")
        for name, value in headers.items():
            if any(mark in name + value for mark in "\r\n\0") or not (name + value).isascii() or ":" in name:
                raise ValueError(f"header '{name}' has characters that HTTP headers cannot have")
        self._host = url.hostname
        secure = url.scheme == "https"
        self._port = url.port or (443 if secure else 80)
        self._tls = ssl.create_default_context() if secure else None
        self._path = url.path.rstrip("/")
        fields = {"Host": url.netloc, "Accept-Encoding": "identity", **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._heads: dict[str, bytes] = {}
        self._connect_s = connect_s
        self._read_s = read_s
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time

    async def post(self, path: str, body: bytes, trace: str = "") -> Connection:
        """The response's connection, its head read; hand it back with `release`. ``trace`` goes along as `traceparent`,
        where there is one. Raises HttpError.
        """
        connection = self._take() or await self._connect()
        self._busy.add(connection)
        if self._timer is None:
            self._timer = self.loop.call_later(_TICK_S, self._check)
        head = self._heads.get(path)
        if head is None:
            line = f"POST {self._path}{path} HTTP/1.1\r\n{self._fields}Content-Length: "
            head = self._heads[path] = line.encode()
        try:
            traced = f"traceparent: {trace}\r\n".encode() if trace else b""
            await connection.exchange(b"%b%d\r\n%b\r\n" % (head, len(body), traced), body)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Connection) -> None:
        """Keep the connection for the next request if its response was read to the end, else close it."""
        self._busy.discard(connection)
        if connection.done and connection.reusable and not connection.closed:
            connection.idle_since = self.now()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def _take(self) -> Connection | None:
        oldest = self.now() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as exc:
            raise ConnectError(str(exc) or "timed out") from exc
        return connection

    def _check(self) -> None:
        now = self.now()
        for connection in self._busy:
            if connection.overdue(now, self._read_s):
                connection.give_up()
        while self._idle and now - self._idle[0].idle_since > _IDLE_S:
            self._idle.popleft().close()
        self._timer = self.loop.call_later(_TICK_S, self._check) if self._busy or self._idle else None
