"""What hostile and broken clients send, over a real socket: a clear error each, and the service goes on."""

import asyncio
import json

import pytest

from services.router.edge import protocol
from tests.harness import NatsServer, eventually
from tests.service.router.rig import HEAD, SECURITY, Raw, Rig, bearer, chat, raw, running, serves

BAD_BODIES = (
    (b'{"model": "stable", ', 400, None, "invalid_json"),
    (b"", 400, None, "invalid_json"),
    (b" \n", 400, None, "invalid_json"),
    (b'\xef\xbb\xbf{"model": "stable"}', 400, None, "invalid_json"),
    (b'{"model": "stable", "user": "half \\ud83d"}', 400, "user", "invalid_json"),
    (b'{"model": "stable", "messages": [{"content": "\\udc00 \\""}]}', 400, "content", "invalid_json"),
    (b"[]", 400, None, "invalid_type"),
    (b'"text"', 400, None, "invalid_type"),
    (b'{"model": "stable", "x": "\xff\xfe"}', 400, None, "invalid_utf8"),
    (b'{"model": 7}', 400, "model", "invalid_type"),
    (b'{"model": "stable", "stream": "yes"}', 400, "stream", "invalid_type"),
    (b'{"model": "stable", "user": {"id": 1}}', 400, "user", "invalid_type"),
    (b'{"messages": []}', 400, "model", "missing_model"),
    (b'{"model": ""}', 400, "model", "missing_model"),
    (b'{"model": "nobody"}', 404, "model", "model_not_found"),
    (b'{"model": "' + b"m" * 100_000 + b'"}', 404, "model", "model_not_found"),
    (b'{"x":' * 100_000, 400, None, "invalid_json"),
)


async def test_a_bad_body_is_refused_naming_the_field(rig: Rig) -> None:
    await rig.worker("stable")
    for body, status, param, code in BAD_BODIES:
        response = await rig.client.post("/v1/chat/completions", content=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (status, param, code), body[:100]
        assert 0 < len(error["message"]) < 500
        assert error["type"]
        assert response.headers["x-request-id"]
    await serves(rig)


async def test_another_method_is_refused_and_the_right_one_named(rig: Rig) -> None:
    response = await rig.client.get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert (await rig.client.post("/v1/models", json={})).headers["allow"] == "GET, HEAD"
    assert (await rig.client.head("/v1/models", headers=bearer())).status_code == 200


async def test_an_11_mib_body_is_refused_by_its_announced_length(rig: Rig) -> None:
    await rig.worker("stable")
    body = b"x" * (11 << 20)
    async with raw(rig) as client:
        sending = asyncio.create_task(client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body))
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (413, "body_too_large")
        await sending
    await serves(rig)


async def test_an_11_mib_body_in_chunks_is_refused_before_its_end(rig: Rig) -> None:
    await rig.worker("stable")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20))
    async with raw(rig) as client:
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            await client.send(chunk)
        status, _, content = await client.answer()  # the body has no end yet
        assert (status, content["error"]["code"]) == (413, "body_too_large")
    await serves(rig)


async def test_a_client_that_asks_before_sending_too_much_is_told_not_to(rig: Rig) -> None:
    async with raw(rig) as client:
        await client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert await client.closed()


async def test_a_body_of_exactly_the_limit_is_taken(rig: Rig) -> None:
    worker = await rig.worker("stable")
    limit = rig.settings.http.max_body_bytes
    body = json.dumps(chat(pad="")).encode()
    body = body.replace(b'"pad": ""', b'"pad": "' + b"x" * (limit - len(body)) + b'"')
    assert len(body) == limit
    assert (await rig.client.post("/v1/chat/completions", content=body)).status_code == 200
    assert worker.bodies == [body]


async def test_headers_of_64_kib_and_over_100_of_them_are_refused(rig: Rig) -> None:
    await rig.worker("stable")
    for headers in (
        b"X-Big: %s\r\n" % (b"a" * (64 << 10)), b"".join(b"X-%d: %s\r\n" % (i, b"b" * 1000) for i in range(70)),
        b"".join(b"X-%d: 1\r\n" % i for i in range(99)),
    ):  # fmt: skip
        async with raw(rig) as client:
            await client.send(HEAD + headers + b"Content-Length: 2\r\n\r\n{}")
            status, _, content = await client.answer()
            assert (status, content["error"]["code"]) == (431, "headers_too_large")
            assert await client.closed()
    await serves(rig)


async def test_a_head_without_an_end_is_refused_once_it_is_too_large(rig: Rig) -> None:
    async with raw(rig) as client:
        await client.send(HEAD + b"X-Endless: ")
        sending = asyncio.create_task(client.send(b"a" * (1 << 20)))
        status, _, _ = await client.answer()
        assert status == 431
        await sending


async def test_what_is_not_http_is_told_so(rig: Rig) -> None:
    async with raw(rig) as client:
        await client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (400, "invalid_http")
        assert await client.closed()
    await rig.worker("stable")
    await serves(rig)


async def test_a_slow_head_times_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    await rig.worker("stable")
    async with raw(rig) as client, raw(rig) as silent:
        await client.send(HEAD)
        drip = asyncio.create_task(_drip(client, b"X-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"))
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (408, "request_timeout")
        drip.cancel()
        assert await silent.closed()
    await serves(rig)


async def _drip(client: Raw, data: bytes) -> None:
    for byte in data:
        await client.send(bytes([byte]))
        await asyncio.sleep(0.1)


async def test_a_body_that_pauses_times_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BODY_IDLE_S", 0.6)
    await rig.worker("stable")
    async with raw(rig) as client:
        await client.send(HEAD + b'Content-Length: 100\r\n\r\n{"model":')
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (408, "request_timeout")
        assert await client.closed()
    await serves(rig)


async def test_a_client_that_closes_its_side_too_early_is_told_so(rig: Rig) -> None:
    await rig.worker("stable")
    async with raw(rig) as client:
        await client.send(HEAD + b'Content-Length: 100\r\n\r\n{"model":')
        client.writer.write_eof()
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (400, "incomplete_body")
        assert await client.closed()
    async with raw(rig) as client:
        await client.send(HEAD)
        client.writer.write_eof()
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (400, "incomplete_request")
    await serves(rig)


async def test_a_client_that_closes_its_side_while_it_waits_cancels_its_request(rig: Rig) -> None:
    worker = await rig.worker("stable")
    body = json.dumps(chat(mode="hang")).encode()
    async with raw(rig) as client:
        await client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await eventually(lambda: worker.running == 1)
        client.writer.write_eof()
        status, _, content = await client.answer()
        assert (status, content["error"]["code"]) == (400, "client_closed_request")
        assert await client.closed()
    await eventually(lambda: worker.cancelled and worker.running == 0)


async def test_a_half_closed_question_about_health_is_answered(rig: Rig) -> None:
    async with raw(rig) as client:
        await client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        client.writer.write_eof()
        assert (await client.answer())[0] == 200
        assert await client.closed()


async def test_requests_in_a_row_on_one_connection_are_answered_in_order(rig: Rig) -> None:
    await rig.worker("stable")
    one = json.dumps(chat(mode="slow:0.1", stream=False)).encode()
    two = json.dumps(chat(model="nobody")).encode()
    async with raw(rig) as client:
        await client.send(b"".join(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in (two, two, one)))
        assert [(await client.answer())[0] for _ in range(2)] == [404, 404]
        async with asyncio.timeout(10):
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")


async def test_odd_request_ids_are_replaced_and_fair_ones_kept(rig: Rig) -> None:
    worker = await rig.worker("stable")
    for given, kept in ((b"a b-c/1", True), (b"x" * 129, False), (b"caf\xc3\xa9", False)):
        response = await rig.client.post("/v1/chat/completions", json=chat(), headers={b"X-Request-ID": given})
        answered = response.headers["x-request-id"]
        assert (answered.encode() == given) is kept
        assert worker.requests[-1].request_id == ("" if kept else answered), "what a caller chose is nothing to show"


async def test_an_address_that_is_not_allowed_is_kept_out_of_everything_but_health(nats_server: NatsServer) -> None:
    async with running(nats_server, security={**SECURITY, "ip_allow": ["10.0.0.0/8"]}) as rig:
        for method, path in (
            ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/ab-testing/status"),
            ("POST", "/v1/ab-testing/start"), ("GET", "/v1/ab-testing/events"),
        ):  # fmt: skip
            response = await rig.client.request(method, path, json=chat(), headers=bearer("admin"))
            assert (response.status_code, response.json()["error"]["code"]) == (403, "address_not_allowed"), path
        assert (await rig.client.get("/health")).status_code == 200
        rig.path.gate.address("::ffff:10.1.2.3")


async def test_a_wish_for_http_2_is_ignored_and_the_body_served(rig: Rig) -> None:
    """The JDK's client, and what is built on it, sends this with its first request."""
    worker = await rig.worker("stable")
    body = json.dumps(chat()).encode()
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    request = HEAD + wish + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for cut in (len(request), len(HEAD) + 20, len(request) - len(body), len(request) - 3):
        async with raw(rig) as client:
            await client.send(request[:cut])
            await asyncio.sleep(0)  # two segments, as the network may cut them
            await client.send(request[cut:] + request)
            for _ in range(2):
                status, _, _ = await client.answer()
                assert status == 200
    assert worker.bodies == [body] * 8
    async with raw(rig) as client:
        await client.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key\r\n" + wish + b"\r\n")
        assert (await client.answer())[0] == 200
    async with raw(rig) as client:
        await client.send(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.answer())[0] == 400
