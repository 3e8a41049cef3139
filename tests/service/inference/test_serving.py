"""One worker on a real bus with a real upstream: frames, outcomes, errors."""

import asyncio
import gzip
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
    async with stack(cost={"prompt_per_1k": 1.0, "completion_per_1k": 2.0}) as s:
        reply = await (await s.router.chat("one two three", max_tokens=5)).end()
        assert reply.kinds == [SINGLE]
        assert reply.head is not None
        assert reply.head.status == 200
        assert reply.json["x_fake"]
        final = reply.done
        assert final.outcome == "length"
        assert (final.prompt_tokens, final.completion_tokens, final.cached_tokens) == (3, 5, 3)
        assert final.cost_nano == 3 * 1_000_000 + 5 * 2_000_000
        assert final.digest == ""  # what an upstream runs, only it can tell
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


def answer(body: bytes, status: str = "200 OK", headers: str = "Content-Type: application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


WHOLE = b'{"choices":[{"index":0,"message":{"content":"well"},"finish_reason":"stop"}]}'
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"well"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
SSE = "Content-Type: Text/Event-Stream"
GZIP = "\r\nContent-Encoding: gzip"


@pytest.mark.parametrize(
    ("raw", "status", "outcome"),
    [
        (answer(b"", "302 Found", "Location: http://elsewhere"), 502, "error_before_first_token"),
        (answer(b"{}", "999 Odd"), 502, "error_before_first_token"),
        (answer(b"<html>sign in</html>", headers="Content-Type: text/html"), 502, "error_before_first_token"),
        (answer(b"{", "200 OK"), 502, "error_before_first_token"),
        (answer(b"<html>bad gateway</html>", "503 Busy", "Content-Type: text/html"), 503, "rejected"),
        (answer(b'{"error":{"message":"slow down","code":429}}'), 429, "rejected"),
        (answer(b'{"error":{"message":"what","code":"bad"}}'), 500, "error_before_first_token"),
        (answer(b"....", headers="Content-Encoding: br"), 502, "error_before_first_token"),
        (answer(b"no gzip", headers="Content-Encoding: gzip"), 502, "error_before_first_token"),
    ],
)
async def test_what_is_no_answer_is_an_error_in_the_contracts_shape(
    stack: StackFactory, raw: bytes, status: int, outcome: str
) -> None:
    async with stack() as s:
        s.fake.behaviour.raw = raw
        for stream in (False, True):
            reply = await (await s.router.chat(stream=stream)).end()
            assert reply.head is not None
            assert (reply.head.status, reply.head.content_type) == (status, "application/json")
            assert reply.json["error"]["message"]
            assert reply.done.outcome == outcome


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("0.5", 1), ("2.1", 3), ("99999", 3600), ("9" * 5000, 3600), ("\xb2", 0), ("nan", 0), ("Fri, 31 Feb 99999 1:2:3 +9999", 0)],
)
async def test_a_retry_after_of_any_kind_leaves_the_status_alone(stack: StackFactory, given: str, seconds: int) -> None:
    async with stack() as s:
        s.fake.behaviour.raw = answer(b'{"error":{"message":"no"}}', "429 No").replace(
            b"\r\n", b"\r\nRetry-After: " + given.encode("latin-1") + b"\r\n", 1
        )
        reply = await (await s.router.chat()).end()
        assert reply.head is not None
        assert (reply.head.status, reply.head.retry_after) == (429, seconds)


async def test_a_compressed_answer_and_a_type_in_capitals_are_understood(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.raw = answer(gzip.compress(WHOLE), headers="Content-Type: application/json" + GZIP)
        whole = await (await s.router.chat()).end()
        assert (whole.body, whole.done.outcome) == (WHOLE, "ok")
        for body, headers in ((STREAM, SSE), (gzip.compress(STREAM), SSE + GZIP)):
            s.fake.behaviour.raw = answer(body, headers=headers)
            streamed = await (await s.router.chat(stream=True)).end()
            assert streamed.head is not None
            assert (streamed.body, streamed.head.content_type, streamed.done.outcome) == (STREAM, "text/event-stream", "ok")


async def test_what_comes_after_the_last_event_changes_nothing(stack: StackFactory) -> None:
    """A server that goes on, stays or breaks off then has given its whole answer all the same."""
    async with stack(timeout_seconds=60) as s:
        head = f"HTTP/1.1 200 OK\r\n{SSE}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        chunk = b"%x\r\n%s\r\n"
        for rest, open_s in ((b"", 0.0), (b"", 50.0), (chunk % (15, b'data: {"a":1}\n\n'), 50.0)):
            s.fake.behaviour.raw, s.fake.behaviour.raw_open_s = head + chunk % (len(STREAM), STREAM) + rest, open_s
            async with asyncio.timeout(45):
                reply = await (await s.router.chat(stream=True)).end()
            assert (reply.done.outcome, b'"error"' in reply.body) == ("ok", False)


async def test_an_error_that_comes_first_keeps_its_own_words(stack: StackFactory) -> None:
    async with stack() as s:
        error = {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
        s.fake.behaviour.raw = answer(b"data: " + json.dumps({"error": error}).encode() + b"\n\n", headers=SSE)
        reply = await (await s.router.chat(stream=True)).end()
        assert reply.json["error"] == error


@pytest.mark.parametrize(
    ("event", "status", "outcome", "words"),
    [
        (b'data: {"object":"error","message":"too long","type":"BadRequestError","code":400}', 400, "client_error", "too long"),
        (b'error: {"code":503,"message":"no slot"}', 503, "rejected", "no slot"),
        (b'event: error\ndata: {"type":"overloaded_error","message":"busy"}', 500, "error_before_first_token", "busy"),
        (b'data:{"error":"failed","error_type":"generation"}', 500, "error_before_first_token", "failed"),
        (b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}', 500, "error_before_first_token", "the engine gave the request up (abort)"),
    ],
)  # fmt: skip
async def test_errors_in_every_server_s_form_are_errors(stack: StackFactory, event: bytes, status: int, outcome: str, words: str) -> None:
    async with stack() as s:
        s.fake.behaviour.raw = answer(event + b"\n\ndata: [DONE]\n\n", headers=SSE)
        reply = await (await s.router.chat(stream=True)).end()
        assert reply.head is not None
        assert (reply.kinds, reply.head.status, reply.done.outcome) == ([SINGLE], status, outcome)
        assert reply.json["error"]["message"] == words


async def test_an_answer_nested_too_deeply_is_no_json_and_no_failure(stack: StackFactory) -> None:
    async with stack() as s:
        s.fake.behaviour.text = "".join(f"[{n}," for n in range(20_000))
        for stream in (False, True):
            reply = await (await s.router.chat(stream=stream, response_format={"type": "json_schema"})).end()
            assert (reply.head and reply.head.status, reply.done.outcome) == (200, "invalid_json")


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
        s.fake.behaviour.chunk_delay_s = 0.01
        reply = await (await s.router.chat(stream=True, max_tokens=400)).end()
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
