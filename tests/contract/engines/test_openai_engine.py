"""What only an engine behind HTTP has to get right."""

import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import EngineError
from services.inference.adapters.openai_engine import OpenAIEngine
from tests.contract.engines.conftest import Subject
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.service.alerts.receivers import certificate


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as server:
        yield server


async def engine_for(fake: FakeOpenAI, **options: object) -> Subject:
    model = Model.model_validate({"name": "m", "engine": "openai", "base_url": fake.base_url, "timeout_seconds": 5, **options})
    engine = OpenAIEngine(model)
    await engine.load()
    return Subject(engine, lambda: fake.seen.running, fake)


async def test_body_passes_byte_for_byte(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake)
    raw = b'{ "model":"m" ,"messages":[{"role":"user","content":"h\\u00e9 \xc3\xa9"}],"seed":12345678901234567890, "x":1.50e1}'
    request = subject.request("chat")
    request.body = raw
    async for _ in subject.engine.generate(request):
        pass
    assert fake.seen.raw == [raw]
    await subject.engine.close()


async def test_upstream_model_is_put_in_and_the_rest_kept(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake, upstream_model="meta/llama")
    answer = await subject.chat(stream=True, stream_options={"x": 1}, x_other=[1, {"y": None}], max_tokens=2)
    seen = fake.seen.bodies[0]
    assert seen["model"] == "meta/llama"
    assert seen["stream_options"] == {"x": 1, "include_usage": True}
    assert seen["x_other"] == [1, {"y": None}]
    assert answer.events[0]["model"] == "meta/llama"
    assert answer.events[0]["x_fake"]
    await subject.engine.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
async def test_upstream_error_is_kept(fake: FakeOpenAI, status: int, stream: bool) -> None:
    subject = await engine_for(fake)
    fake.behaviour.status, fake.behaviour.retry_after = status, "7"
    answer = await subject.chat(stream=stream)
    assert (answer.head.status, answer.head.retry_after) == (status, 7)
    assert answer.json["error"]["message"] == "as you asked"
    assert answer.json["extra"] == 1
    await subject.engine.close()


async def test_key_comes_from_the_environment(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_UPSTREAM_KEY", "s3cret")
    subject = await engine_for(fake, api_key_env="TEST_UPSTREAM_KEY")
    await subject.chat(max_tokens=1)
    assert fake.seen.headers[0]["Authorization"] == "Bearer s3cret"
    await subject.engine.close()
    monkeypatch.delenv("TEST_UPSTREAM_KEY")
    with pytest.raises(ValueError, match="TEST_UPSTREAM_KEY is not set"):
        await engine_for(fake, api_key_env="TEST_UPSTREAM_KEY")


async def test_refused_connection_reached_nobody() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        subject = await engine_for(FakeOpenAI(sock.getsockname()[1]))
        with pytest.raises(EngineError) as caught:
            await subject.chat()
    assert (caught.value.status, caught.value.reset) == (503, True)
    assert caught.value.retry_after >= 1
    await subject.engine.close()


async def test_https_with_an_authority_that_is_trusted_and_with_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    async with FakeOpenAI(tls=tls) as fake:
        wary = await engine_for(fake)
        with pytest.raises(EngineError, match=r"certificate was refused \(.+\); SSL_CERT_FILE") as caught:
            await wary.chat()
        assert caught.value.reset
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        trusting = await engine_for(fake)
        assert (await trusting.chat(max_tokens=2)).head.status == 200
        assert fake.seen.finished == 1
        await wary.engine.close()
        await trusting.engine.close()


async def test_no_first_byte_in_time(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake, timeout_seconds=0.2)
    fake.behaviour.hang = True
    with pytest.raises(EngineError) as caught:
        await subject.chat()
    assert (caught.value.status, caught.value.kind, caught.value.reset) == (504, "timeout", False)
    await eventually(lambda: fake.seen.cancelled == 1)
    await subject.engine.close()


async def test_no_next_chunk_in_time(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake, timeout_seconds=0.3)
    fake.behaviour.hang_after = 2
    with pytest.raises(EngineError) as caught:
        await subject.chat(stream=True)
    assert caught.value.status == 504
    await eventually(lambda: fake.seen.cancelled == 1)
    await subject.engine.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_connection_lost_half_way(fake: FakeOpenAI, stream: bool) -> None:
    subject = await engine_for(fake)
    fake.behaviour.die_after = 2
    with pytest.raises(EngineError) as caught:
        await subject.chat(stream=stream)
    assert (caught.value.status, caught.value.reset) == (502, False)
    await subject.engine.close()


async def test_connections_are_used_again(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake)
    for stream in (False, True, False, True):
        await subject.chat(max_tokens=3, stream=stream)
    assert subject.engine._pool.idle == 1  # type: ignore[attr-defined]
    await subject.engine.close()


async def test_a_trace_goes_along_but_not_beside_a_header_that_was_configured(fake: FakeOpenAI) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    for headers, traced, sent in (({}, trace, [trace]), ({}, "", []), ({"TraceParent": "mine"}, trace, ["mine"])):
        subject = await engine_for(fake, engine_args={"headers": headers})
        request = subject.request("chat")
        request.trace = traced
        async for _ in subject.engine.generate(request):
            pass
        assert [value for name, value in fake.seen.headers[-1].items() if name.lower() == "traceparent"] == sent
        assert fake.seen.raw[-1] == request.body
        await subject.engine.close()


async def test_include_usage_can_be_switched_off(fake: FakeOpenAI) -> None:
    subject = await engine_for(fake, engine_args={"include_usage": False, "headers": {"X-Extra": "1"}})
    await subject.chat(stream=True, max_tokens=2)
    assert "stream_options" not in json.loads(fake.seen.raw[0])
    assert fake.seen.headers[0]["X-Extra"] == "1"
    await subject.engine.close()
