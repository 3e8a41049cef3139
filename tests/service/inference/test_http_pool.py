"""The HTTP client against a server that says exactly what the test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from services.inference.adapters.http_pool import BrokenError, ConnectError, HttpPool, SlowError
from tests.harness import eventually

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Scripted:
    """Answers request n with ``answers[n]``, on any connection; None closes it."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if b"closing" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed += 1
            writer.close()


@asynccontextmanager
async def pool_to(script: Scripted, read_s: float = 5.0) -> AsyncIterator[HttpPool]:
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = HttpPool(f"http://127.0.0.1:{port}/v1/", {"X-Mine": "1"}, connect_s=2, read_s=read_s)
    try:
        yield pool
    finally:
        pool.close()
        server.close()


async def post(pool: HttpPool, body: bytes = b"{}") -> tuple[int, bytes]:
    response = await pool.post("/chat", body)
    try:
        return response.status, await response.body()
    finally:
        pool.release(response)


SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\nab\r\n1\r\nc\r\n0\r\nTrailer: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nX: closing\r\n\r\nall of it"


async def test_kinds_of_bodies_and_one_connection() -> None:
    script = Scripted(SIZED, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED, b"HTTP/1.1 204 No Content\r\n\r\n", SIZED)
    async with pool_to(script) as pool:
        assert [await post(pool) for _ in range(5)] == [(200, b"ok"), (201, b"abc"), (200, b"ok"), (204, b""), (200, b"ok")]
    assert script.connections == 1
    request = script.requests[0]
    assert request.startswith(b"POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"X-Mine: 1\r\n" in request
    assert request.endswith(b"\r\n\r\n{}")


async def test_large_bodies_both_ways() -> None:
    big = b"z" * (3 << 20)
    script = Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big, SIZED)
    async with pool_to(script) as pool:
        assert await post(pool, big) == (200, big)
        assert await post(pool) == (200, b"ok")
    assert script.requests[0].endswith(big)
    assert script.connections == 1


async def test_a_slow_reader_holds_the_server_back() -> None:
    size = 64 << 20
    script = Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    async with pool_to(script, read_s=0.3) as pool:
        response = await pool.post("/chat", b"{}")
        first = len(await response.piece())
        await eventually(lambda: response._paused)
        total = first
        while part := await response.piece():
            total += len(part)
        assert total == size
        pool.release(response)
        assert pool.idle == 1


async def test_nothing_of_an_answer_that_nobody_asked_for_gets_into_another() -> None:
    unasked = b"HTTP/1.1 500 Bad\r\nContent-Length: 4\r\n\r\nelse"
    script = Scripted(SIZED + unasked, CHUNKED + unasked[:30], SIZED)
    async with pool_to(script) as pool:
        assert [await post(pool) for _ in range(3)] == [(200, b"ok"), (201, b"abc"), (200, b"ok")]
    assert script.connections == 3


async def test_a_body_that_ends_with_its_connection() -> None:
    script = Scripted(UNTIL_CLOSE, SIZED)
    async with pool_to(script) as pool:
        assert await post(pool) == (200, b"all of it")
        assert await post(pool) == (200, b"ok")
    assert script.connections == 2


@pytest.mark.parametrize(
    "answer",
    [None, b"HTTP/1.1 101 closing\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX: closing\r\n\r\nok", b"SSH-2.0-closing\r\n\r\n", b"HTTP/1.1 200 closing\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"],
)
async def test_what_breaks_off(answer: bytes | None) -> None:
    async with pool_to(Scripted(answer)) as pool:
        with pytest.raises(BrokenError):
            await post(pool)
        assert pool.idle == 0


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
async def test_what_stops_half_way(answer: bytes) -> None:
    script = Scripted(answer)
    async with pool_to(script, read_s=0.2) as pool:
        with pytest.raises(SlowError):
            await post(pool)
        await eventually(lambda: script.closed == 1)


async def test_closing_before_the_end_closes_the_connection() -> None:
    script = Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
    async with pool_to(script) as pool:
        response = await pool.post("/chat", b"{}")
        assert await response.piece() == b"ok"
        pool.release(response)
        await eventually(lambda: script.closed == 1)


async def test_a_server_that_closes_idle_connections() -> None:
    script = Scripted(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", SIZED)
    async with pool_to(script) as pool:
        assert await post(pool) == (200, b"ok")
        assert pool.idle == 0
        assert await post(pool) == (200, b"ok")
    assert script.connections == 2


async def test_nobody_there() -> None:
    async with pool_to(Scripted()) as pool:
        pool._port = 1
        with pytest.raises(ConnectError):
            await post(pool)


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X\n": "a"}, {"X:": "a"}, {"X": "é"}])
async def test_headers_that_would_split_a_request(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot have"):
        HttpPool("http://127.0.0.1:1/v1", headers, connect_s=1, read_s=1)
