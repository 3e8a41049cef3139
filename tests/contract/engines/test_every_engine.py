"""What the worker relies on, whatever engine it runs."""

import asyncio
import contextlib
from typing import Any

import pytest

from services.inference.adapters.engine import EngineError, EngineHead
from services.inference.domain.requests import BadRequestError
from tests.contract.engines.conftest import Subject
from tests.harness import alive, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("route", ["chat", "completions"])
async def test_whole_answer_with_usage(subject: Subject, route: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello there"}]} if route == "chat" else {"prompt": "Hello there"}
    answer = await subject.ask(route, max_tokens=12, temperature=0, **body)
    assert answer.head.status == 200
    assert answer.head.content_type.startswith("application/json")
    reply = answer.json
    assert reply["object"] == ("chat.completion" if route == "chat" else "text_completion")
    choice = reply["choices"][0]
    assert choice["message"]["content"] if route == "chat" else choice["text"]
    assert choice["finish_reason"] in {"length", "stop"}
    usage = reply["usage"]
    assert 0 < usage["completion_tokens"] <= 12
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("route", ["chat", "completions"])
async def test_stream_is_the_whole_answer_in_pieces(subject: Subject, route: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hello there"}]} if route == "chat" else {"prompt": "Hello there"}
    whole = (await subject.ask(route, max_tokens=40, temperature=0, **body)).json
    streamed = await subject.ask(route, max_tokens=40, temperature=0, stream=True, **body)
    assert streamed.head.content_type.startswith("text/event-stream")
    choice = whole["choices"][0]
    assert streamed.text == (choice["message"]["content"] if route == "chat" else choice["text"])
    finishes = [c.get("finish_reason") for e in streamed.events for c in e["choices"]]
    assert [f for f in finishes if f] == [choice["finish_reason"]]
    assert len([e for e in streamed.events if e["choices"]]) > 3


async def test_stream_tells_its_usage_without_being_asked(subject: Subject) -> None:
    streamed = await subject.chat(max_tokens=9, temperature=0, stream=True)
    usages = [event["usage"] for event in streamed.events if event.get("usage")]
    assert len(usages) == 1
    assert 0 < usages[0]["completion_tokens"] <= 9
    assert streamed.events[-1].get("usage"), "the usage is the last event before the end"


async def test_stop_string_ends_and_is_not_shown(subject: Subject) -> None:
    full = (await subject.chat(max_tokens=60, temperature=0)).json["choices"][0]["message"]["content"]
    stop = full[len(full) // 2 : len(full) // 2 + 4]
    expected = full[: full.index(stop)]
    whole = (await subject.chat(max_tokens=60, temperature=0, stop=stop)).json["choices"][0]
    assert whole["message"]["content"] == expected
    assert whole["finish_reason"] == "stop"
    assert (await subject.chat(max_tokens=60, temperature=0, stop=[stop], stream=True)).text == expected


async def test_same_seed_same_text(subject: Subject) -> None:
    async def say(seed: int) -> str:
        answer = await subject.chat(max_tokens=40, temperature=1.5, seed=seed)
        return str(answer.json["choices"][0]["message"]["content"])

    assert await say(11) == await say(11)
    assert len({await say(seed) for seed in range(4)}) > 1


async def test_several_choices(subject: Subject) -> None:
    reply = (await subject.chat(max_tokens=30, temperature=1.5, seed=3, n=3)).json
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in reply["choices"]}) > 1
    streamed = await subject.chat(max_tokens=5, temperature=1.5, seed=3, n=3, stream=True)
    assert {choice["index"] for event in streamed.events for choice in event["choices"]} == {0, 1, 2}


async def test_closing_the_answer_stops_the_generation(subject: Subject) -> None:
    request = subject.request("chat", messages=[{"role": "user", "content": "Go on"}], max_tokens=400, stream=True, ignore_eos=True)
    pieces = subject.engine.generate(request)
    assert isinstance(await anext(pieces), EngineHead)
    await anext(pieces)
    await eventually(lambda: subject.running() == 1)
    await pieces.aclose()
    await eventually(lambda: subject.running() == 0)


async def test_cancelling_the_task_stops_the_generation(subject: Subject) -> None:
    task = asyncio.create_task(subject.chat(max_tokens=400, stream=True, ignore_eos=True))
    await eventually(lambda: subject.running() == 1, every_s=0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await eventually(lambda: subject.running() == 0)


async def refused(subject: Subject, route: str = "chat", **body: Any) -> tuple[int, str]:
    """Status and message of an answer that the caller got wrong, however the engine puts it."""
    try:
        answer = await (subject.chat(**body) if route == "chat" else subject.ask(route, **body))
    except BadRequestError as exc:
        return 400, exc.message
    assert not answer.head.content_type.startswith("text/event-stream")
    return answer.head.status, answer.json["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_prompt_over_the_context_is_the_callers_error(subject: Subject, stream: bool) -> None:
    status, message = await refused(subject, content="word " * 600, max_tokens=10, stream=stream)
    assert status == 400
    assert "maximum context length" in message


async def test_logprobs_are_of_the_tokens_that_were_written(subject: Subject) -> None:
    reply = (await subject.chat(max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)).json
    choice = reply["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(item["token"] for item in content) == choice["message"]["content"]
    for item in content:
        assert item["logprob"] <= 0
        assert len(item["top_logprobs"]) >= 3
    assert not (await subject.chat(max_tokens=5)).json["choices"][0].get("logprobs")


async def test_embeddings(subject: Subject) -> None:
    if subject.engine.name == "vllm":  # which makes them of models loaded for it: see test_vllm_engine.py
        with pytest.raises(EngineError, match="makes no embeddings") as caught:
            await subject.ask("embeddings", input="a fox")
        assert caught.value.status == 400
        return
    reply = (await subject.ask("embeddings", input=["a fox", "a river", "a fox"])).json
    vectors = [item["embedding"] for item in reply["data"]]
    assert [item["index"] for item in reply["data"]] == [0, 1, 2]
    assert len({len(vector) for vector in vectors}) == 1
    assert vectors[0] == pytest.approx(vectors[2])
    assert vectors[0] != pytest.approx(vectors[1])
    assert reply["usage"]["prompt_tokens"] > 0
    assert len((await subject.ask("embeddings", input="a fox")).json["data"]) == 1


async def test_many_at_once_each_get_their_own(subject: Subject) -> None:
    prompts = [f"Tell me about number {n}, please." + " Really." * n for n in range(8)]
    alone = [(await subject.chat(p, max_tokens=20, temperature=0)).json["choices"][0]["message"]["content"] for p in prompts]
    together = await asyncio.gather(*(subject.chat(p, max_tokens=20, temperature=0, stream=True) for p in prompts))
    assert [answer.text for answer in together] == alone


async def test_unknown_fields_are_no_error(subject: Subject) -> None:
    answer = await subject.chat(
        max_tokens=4, response_format={"type": "text"}, tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice="none", x_unknown={"a": [1, 2]}, presence_penalty=0.1,
    )  # fmt: skip
    assert answer.head.status == 200


async def test_cancelling_one_leaves_the_others_alone(subject: Subject) -> None:
    alone = (await subject.chat("Tell me.", max_tokens=60, temperature=0, stream=True)).text
    doomed = [asyncio.create_task(subject.chat(max_tokens=400, stream=True, ignore_eos=True)) for _ in range(3)]
    kept = [asyncio.create_task(subject.chat("Tell me.", max_tokens=60, temperature=0, stream=True)) for _ in range(3)]
    await eventually(lambda: subject.running() > 3, every_s=0)
    for task in doomed:
        task.cancel()
    assert [answer.text for answer in await asyncio.gather(*kept)] == [alone] * 3
    await asyncio.gather(*doomed, return_exceptions=True)
    await eventually(lambda: subject.running() == 0)


# The last one of the file: nobody can use the engine after it.
async def test_an_engine_that_dies_mid_stream_ends_every_stream_and_says_later_that_nothing_was_sent(subject: Subject) -> None:
    tasks = [asyncio.create_task(subject.chat(max_tokens=450, stream=True, ignore_eos=True)) for _ in range(2)]
    await eventually(lambda: subject.running() == 2, every_s=0)
    pids = subject.engine.health().pids
    assert subject.kill is not None
    await subject.kill()
    for task in tasks:
        with pytest.raises(EngineError) as caught:
            await task
        assert caught.value.status in {500, 502, 503}
        assert not caught.value.reset
    if subject.engine.name == "vllm":
        assert "ended" in (subject.engine.dead() or "")
        await eventually(lambda: not alive(pids))
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            await subject.chat(max_tokens=4)
        assert caught.value.status == 503
        assert caught.value.reset
        await subject.engine.close()
