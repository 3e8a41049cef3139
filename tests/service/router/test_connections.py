"""What a connection may carry besides one request and its answer: many requests, odd heads, unread answers."""

import asyncio
import gc
import gzip
import json
import socket

from services.router.edge.exchange import Exchange
from tests.harness import eventually
from tests.service.router.rig import HEAD, Raw, Rig, chat, raw, serves

GOOD = json.dumps(chat()).encode()
CONTROL = b"POST /v1/ab-testing/stop HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin-key\r\n"
NO_KEY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def sized(body: bytes = GOOD) -> bytes:
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


async def test_one_who_sends_on_and_takes_no_answers_is_read_no_further(rig: Rig) -> None:
    """Otherwise whoever has not even a key fills the memory with the answers that it does not take."""
    await rig.worker("stable")
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        for end in (sock, rig._sock):  # what it accepts inherits them
            for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                end.setsockopt(socket.SOL_SOCKET, buffer, 1 << 16)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", rig.port))
        blocked, sent = False, 0
        while not blocked and sent < 64 << 20:
            try:
                async with asyncio.timeout(1):
                    await loop.sock_sendall(sock, NO_KEY * 500)
                sent += len(NO_KEY) * 500
            except TimeoutError:
                blocked = True
        assert blocked
        await serves(rig)
        # Once the answers are taken it goes on, and every request has had one.
        answers, rest, mark = 0, b"", b"HTTP/1.1 401 "
        async with asyncio.timeout(20):
            while answers < sent // len(NO_KEY):
                data = rest + await loop.sock_recv(sock, 1 << 20)
                answers += data.count(mark)
                rest = data[-len(mark) + 1 :]


async def test_a_refused_request_leaves_nothing_for_the_collector(rig: Rig) -> None:
    def exchanges() -> int:
        return sum(isinstance(thing, Exchange) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        async with raw(rig) as client:
            await client.send(NO_KEY * 20)
            for _ in range(20):
                assert (await client.answer())[0] == 401
            await eventually(lambda: exchanges() == 1)  # the connection's last
    finally:
        gc.enable()


async def test_a_head_that_follows_many_requests_is_not_taken_for_a_long_one(rig: Rig) -> None:
    await rig.worker("stable")
    request = HEAD + sized(json.dumps(chat(model="nobody", pad="x" * 300)).encode())
    async with raw(rig) as client:
        sending = asyncio.create_task(client.send(request * 400 + HEAD))
        for _ in range(400):
            assert (await client.answer())[0] == 404
        await sending
        await client.send(sized())
        assert (await client.answer())[0] == 200


async def test_paths_that_mean_the_same_are_the_same(rig: Rig) -> None:
    await rig.worker("stable")
    for path in ("/v1/chat/completion%73", "/v1/%63hat/completions?a=b", "http://x/v1/chat/completions", "/v1/chat/completions#x"):
        async with raw(rig) as client:
            await client.send(HEAD.replace(b"/v1/chat/completions", path.encode()) + sized())
            status, _, content = await client.answer()
            assert (status, len(content["choices"])) == (200, 1), path


async def test_what_the_connection_itself_refuses_has_a_request_id_too(rig: Rig) -> None:
    own = HEAD + b"X-Request-ID: mine\r\nX-Other: 1\r\n"
    for request, kept in ((own + b"Bad Header\r\n\r\n", True), (own + b"X: %s\r\n\r\n" % (b"y" * 70_000), True), (b"\x16\x03\x01\r\n\r\n", False)):
        async with raw(rig) as client:
            await client.send(request)
            status, headers, _ = await client.answer()
            assert status in {400, 431}
            assert headers["x-request-id"].startswith("mine" if kept else "req_")


AMBIGUOUS = (
    b"Authorization: Bearer viewer-key\r\n", b"Host: y\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: -5\r\n", b"Content-Length: 0x5\r\n",
    b"Content-Length: 99999999999999999999999\r\n",
    b"X-One: a\r\n Content-Length: 5\r\n", b"X-One: a\nContent-Length: 5\r\n", b"X-One: a\rContent-Length: 5\r\n",
    b"X-One: a\x00\r\n", b"X\x00One: a\r\n", b": a\r\n",
)  # fmt: skip
ALSO_AMBIGUOUS = (
    b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a, b\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: u@a\r\n\r\n",
    HEAD.replace(b"HTTP/1.1", b"HTTP/1.0", 1) + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: x\n\n", b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
    CONTROL + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    CONTROL + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
)  # fmt: skip


async def test_what_two_readers_could_read_differently_is_refused(rig: Rig) -> None:
    starts = (HEAD, HEAD.replace(b"/v1/chat/completions", b"/v1/ab-testing/start"))
    for request in (*(start + headers + b"\r\n" for headers in AMBIGUOUS for start in starts), *ALSO_AMBIGUOUS):
        async with raw(rig) as client:
            await client.send(request)
            status, _, content = await client.answer()
            assert (status, content["error"]["code"]) == (400, "invalid_http"), request
            assert await client.closed()


async def test_only_http_1_0_may_leave_out_the_host(rig: Rig) -> None:
    await rig.worker("stable")
    bare = HEAD.replace(b"Host: x\r\n", b"") + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
    for request in (bare, b"GET /health HTTP/1.1\r\n\r\n"):
        async with raw(rig) as client:
            await client.send(request)
            status, _, content = await client.answer()
            assert (status, content["error"]["code"]) == (400, "invalid_http")
            assert "Host is missing" in content["error"]["message"]
            assert await client.closed()
    async with raw(rig) as client:
        await client.send(bare.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        assert (await client.answer())[0] == 200


async def test_headers_after_a_body_mean_nothing(rig: Rig) -> None:
    worker = await rig.worker("stable")
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x;name=value\r\n%s\r\n0\r\n" % (len(GOOD), GOOD)
    async with raw(rig) as client:
        await client.send(HEAD + chunked + b"Authorization: Bearer nobody\r\nX-Request-ID: late\r\n\r\n" + HEAD + sized())
        status, headers, _ = await client.answer()
        assert (status, headers["x-request-id"] == "late") == (200, False)
        assert (await client.answer())[0] == 200
    assert worker.bodies == [GOOD, GOOD]


async def test_a_compressed_body_is_refused_as_what_it_is(rig: Rig) -> None:
    headers = {"Content-Encoding": "gzip"}
    response = await rig.client.post("/v1/chat/completions", content=gzip.compress(GOOD), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_content_encoding")
    await rig.worker("stable")
    response = await rig.client.post("/v1/chat/completions", content=GOOD, headers={"Content-Encoding": "identity"})
    assert response.status_code == 200


async def test_only_http_1_1_is_told_to_continue(rig: Rig) -> None:
    await rig.worker("stable")
    expecting = HEAD + b"Expect: 100-continue\r\n" + sized()
    async with raw(rig) as client:
        await client.send(expecting.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        assert (await client.answer())[0] == 200
    async with raw(rig) as client:
        await client.send(expecting)
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.answer())[0] == 200


async def test_other_versions_of_http_and_none_are_not_spoken(rig: Rig) -> None:
    for line in (b"GET /health", b"GET /v1/models", b"POST /v1/chat/completions", b"GET /health HTTP/0.9", b"GET /health HTTP/2.0"):
        async with raw(rig) as client:
            await client.send(line + b"\r\nX: y\r\n\r\n")
            status, _, content = await client.answer()
            assert (status, content["error"]["code"]) == (505, "http_version_not_supported"), line
            assert await client.closed()


async def test_a_body_of_nothing_but_framing_is_refused_and_one_byte_a_chunk_is_not(rig: Rig) -> None:
    await rig.worker("stable")
    chunked = b"Transfer-Encoding: chunked\r\n\r\n"
    for head in (HEAD, CONTROL):
        async with raw(rig) as client:
            await client.send(head + chunked)
            await client.send(b"1;pad=" + b"x" * 300_000)
            status, _, content = await client.answer()
            assert (status, content["error"]["code"]) == (400, "invalid_http")
            assert "framing" in content["error"]["message"]
            assert await client.closed()
    body = json.dumps(chat(pad="x" * 30_000)).encode()
    async with raw(rig) as client:
        await client.send(HEAD + chunked)
        await client.send(b"".join(b"1;n=v\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert (await client.answer())[0] == 200


async def test_a_body_that_is_announced_too_long_or_packed_is_refused_at_once_and_the_connection_ended(rig: Rig) -> None:
    for head in (HEAD, CONTROL):
        async with raw(rig) as client:
            await client.send(head + b"Content-Length: 99999999999\r\n\r\n{")
            status, headers, content = await client.answer()
            assert (status, content["error"]["code"], headers["connection"]) == (413, "body_too_large", "close")
            assert await client.closed()
    async with raw(rig) as client:
        await client.send(CONTROL + b"Content-Encoding: gzip\r\nContent-Length: 99\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (415, "close")
        assert await client.closed()


async def test_who_asks_before_sending_and_is_refused_is_told_that_the_connection_ends(rig: Rig) -> None:
    for path in (b"/v1/ab-testing/stop", b"/v1/ab-testing/nothing", b"/health"):
        async with raw(rig) as client:
            await client.send(b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n" % path)
            status, headers, _ = await client.answer()
            assert (status in {401, 404, 405}, headers["connection"]) == (True, "close")
            assert await client.closed()


async def test_what_came_before_nonsense_is_answered_and_then_the_connection_ended(rig: Rig) -> None:
    await rig.worker("stable")
    for before in (HEAD + sized(), CONTROL + sized(b"{}"), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        for nonsense in (b"\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"{}"):
            async with raw(rig) as client:
                await client.send(before + nonsense)
                status, _, _ = await client.answer()
                assert status in {200, 404}
                assert await _ended(client)


async def _ended(client: Raw) -> bool:
    """Closed, whether or not the answer to the nonsense could still be sent."""
    async with asyncio.timeout(20):
        rest = await client.reader.read()
    return rest == b"" or rest.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505"))
