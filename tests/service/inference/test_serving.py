"""One worker on a real bus with a real upstream: frames, outcomes, errors."""

import json

import pytest

from schemas.v1.inference import CHUNK, FINAL, HEAD, MAX_PIECE, SINGLE
from services.inference.domain.sse import SseSplitter, data_of
from tests.harness import eventually
from tests.service.inference.conftest import Reply, StackFactory


def events(reply: Reply) -> list[bytes]:
    splitter = SseSplitter()
    found = [data_of(event) for event in splitter.feed(reply.body)]
    assert splitter.rest == b""
    return found


async def test_whole_answer_is_one_frame(stack: StackFactory) -> None:
    async with stack(cost={"prompt_per_1k": 1.0, "completion_per_1k": 2.0}, digest="sha256:" + "a" * 64) as s:
        reply = await (await s.router.chat("one two three", max_tokens=5)).end()
        assert reply.kinds == [SINGLE]
        assert reply.head is not None
        assert reply.head.status == 200
        assert reply.json["x_fake"]
        final = reply.done
        assert final.outcome == "length"
        assert (final.prompt_tokens, final.completion_tokens, final.cached_tokens) == (3, 5, 3)
        assert final.cost_nano == 3 * 1_000_000 + 5 * 2_000_000
        assert final.digest == "sha256:" + "a" * 64
        assert final.ttft_us == -1
        assert final.queue_us >= 0


async def test_stream_in_whole_events_without_the_usage_nobody_asked_for(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.chunk_delay_s = 0.005
        reply = await (await s.router.chat("a b", max_tokens=6, stream=True)).end()
        assert reply.kinds[0] == HEAD
        assert reply.kinds[-1] == FINAL
        assert CHUNK in reply.kinds
        found = events(reply)
        assert found[-1] == b"[DONE]"
        assert all(json.loads(item)["choices"] for item in found[:-1])
        final = reply.done
        assert (final.prompt_tokens, final.completion_tokens) == (2, 6)
        assert final.ttft_us > 0
        assert final.itl_us > 0
        asked = await (await s.router.chat("a b", max_tokens=6, stream=True, stream_options={"include_usage": True})).end()
        assert json.loads(events(asked)[-2])["usage"]["completion_tokens"] == 6


async def test_windows_line_ends_pass_too(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.crlf = True
        reply = await (await s.router.chat(max_tokens=4, stream=True)).end()
        assert reply.done.completion_tokens == 4
        assert reply.body.endswith(b"data: [DONE]\r\n\r\n")
        assert b'"usage"' not in reply.body


async def test_large_answer_comes_in_pieces(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.text = "x" * (MAX_PIECE * 3)
        reply = await (await s.router.chat()).end()
        assert reply.kinds == [HEAD, CHUNK, CHUNK, CHUNK, FINAL]
        assert len(reply.json["choices"][0]["message"]["content"]) == MAX_PIECE * 3


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "client_error"), (422, "client_error"), (401, "error_before_first_token"), (429, "rejected"), (503, "rejected"), (504, "timeout"), (500, "error_before_first_token")],
)
async def test_upstream_errors_keep_status_and_body(stack: StackFactory, status: int, outcome: str) -> None:
    async with stack() as s:
        s.fake.behaviour.status, s.fake.behaviour.retry_after = status, "3"
        for stream in (False, True):
            reply = await (await s.router.chat(stream=stream)).end()
            assert reply.kinds == [SINGLE]
            assert reply.head is not None
            assert (reply.head.status, reply.head.retry_after) == (status, 3)
            assert reply.json["extra"] == 1
            assert (reply.done.outcome, reply.done.reset) == (outcome, False)


async def test_dying_before_and_after_the_first_token(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.die_after = 0
        before = await (await s.router.chat(stream=True)).end()
        assert before.kinds == [SINGLE]
        assert before.head is not None
        assert before.head.status == 502
        assert before.done.outcome == "error_before_first_token"
        s.fake.behaviour.die_after = 3
        s.fake.behaviour.chunk_delay_s = 0.01
        after = await (await s.router.chat(stream=True)).end()
        assert after.kinds[-1] == FINAL
        assert after.done.outcome == "error_mid_stream"
        assert json.loads(events(after)[-1])["error"]["type"] == "engine_error"


async def test_error_event_of_the_engine(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.error_after = 0
        before = await (await s.router.chat(stream=True)).end()
        assert before.head is not None
        assert before.head.status == 500
        assert before.json["error"]["message"] == "the engine fell over"
        s.fake.behaviour.error_after = 2
        after = await (await s.router.chat(stream=True)).end()
        assert after.done.outcome == "error_mid_stream"
        assert sum(b'"error"' in event for event in events(after)) == 1


async def test_stream_without_end_is_broken_off(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.no_end = True
        reply = await (await s.router.chat(stream=True)).end()
        assert reply.done.outcome == "error_mid_stream"


async def test_refused_connection_may_be_tried_elsewhere(stack: StackFactory) -> None:
    async with stack() as s:
        await s.fake.stop()
        reply = await (await s.router.chat()).end()
        assert reply.head is not None
        assert (reply.head.status, reply.done.reset, reply.done.outcome) == (503, True, "rejected")


@pytest.mark.parametrize("stream", [False, True])
async def test_timeout(stack: StackFactory, stream: bool) -> None:
    async with stack(timeout_seconds=0.5) as s:
        s.fake.behaviour.hang = True
        reply = await (await s.router.chat(stream=stream)).end()
        assert reply.head is not None
        assert (reply.head.status, reply.done.outcome) == (504, "timeout")
        s.fake.behaviour.hang, s.fake.behaviour.hang_after = False, 2
        if stream:
            reply = await (await s.router.chat(stream=True)).end()
            assert (reply.kinds[-1], reply.done.outcome) == (FINAL, "timeout")
        await eventually(lambda: s.fake.seen.running == 0)


async def test_total_timeout_and_deadline(stack: StackFactory) -> None:
    async with stack(timeout_seconds=1, total_timeout_seconds=1) as s:
        s.fake.behaviour.chunk_delay_s = 0.1
        reply = await (await s.router.chat(stream=True, max_tokens=200)).end()
        assert (reply.kinds[0], reply.done.outcome) == (HEAD, "timeout")
        s.fake.behaviour.hang = True
        short = await (await s.router.chat(stream=True, head={"deadline_ms": 100})).end()
        assert (short.kinds, short.done.outcome) == ([SINGLE], "timeout")
        await eventually(lambda: s.fake.seen.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_answer_amounts_to(stack: StackFactory, stream: bool) -> None:
    async with stack() as s:
        async def outcome(text: str | None = None, tool: tuple[str, str] | None = None, **body: object) -> str:
            s.fake.behaviour.text, s.fake.behaviour.tool_call = text, tool
            return str((await (await s.router.chat(stream=stream, **body)).end()).done.outcome)

        tools = [{"type": "function", "function": {"name": "weather"}}]
        json_mode = {"response_format": {"type": "json_object"}}
        assert await outcome("All is well.") == "ok"
        assert await outcome("") == "empty"
        assert await outcome('{"a": 1}', **json_mode) == "ok"
        assert await outcome('{"a": 1', **json_mode) == "invalid_json"
        assert await outcome(tool=("weather", '{"at": "x"}'), tools=tools) == "ok"
        assert await outcome(tool=("weather", '{"at": '), tools=tools) == "invalid_tool_call"
        assert await outcome(tool=("rocket", "{}"), tools=tools) == "invalid_tool_call"
        assert await outcome("Round and round. " * 60) == "repetition"


async def test_other_routes(stack: StackFactory) -> None:
    async with stack() as s:
        done = await (await s.router.send("completions", prompt="a b c", max_tokens=2)).end()
        assert done.json["object"] == "text_completion"
        vectors = await (await s.router.send("embeddings", input=["a", "b"])).end()
        assert len(vectors.json["data"]) == 2
        assert (vectors.done.outcome, vectors.done.prompt_tokens) == ("ok", 2)
        legacy = await (await s.router.send("generate", prompt="a b c", max_tokens=2, temperature=0)).end()
        [text] = legacy.json["text"]
        assert text.startswith("a b c")
        assert len(text) > len("a b c")
        assert s.fake.seen.paths[-1] == "/v1/completions"
        streamed = await (await s.router.send("generate", prompt="a b c", max_tokens=2, temperature=0, stream=True)).end()
        lines = [json.loads(line) for line in streamed.body.splitlines()]
        assert lines[-1]["text"] == [text]
        assert streamed.done.outcome == "length"
        bad = await (await s.router.send("generate", max_tokens=2)).end()
        assert bad.head is not None
        assert bad.head.status == 400
        assert bad.json["error"]["param"] == "prompt"


async def test_malformed_bodies(stack: StackFactory) -> None:
    async with stack() as s:
        for raw in (b"", b"{", b"[1]", b"\xff\xfe", b'{"model": "m"'):
            reply = await (await s.router.send_raw(raw)).end()
            assert reply.head is not None
            assert (reply.head.status, reply.done.outcome) == (400, "client_error")
            assert reply.json["error"]["type"] == "invalid_request_error"
        assert not s.fake.seen.raw
        assert (await (await s.router.chat(max_tokens=1)).end()).done.outcome == "length"
