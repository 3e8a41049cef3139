"""Feedback as an application gives it: the token of a response, what the user thought, and exact counts of it."""

import asyncio
import signal
from collections import Counter
from typing import Any

import openai

from tests.harness import eventually
from tests.system import System


async def tokens(system: System, count: int) -> list[tuple[str, str]]:
    """(variant, token) of responses to as many users."""
    client = openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0)
    found = []
    messages: Any = [{"role": "user", "content": "Say something kind."}]
    for index in range(count):
        raw = await client.chat.completions.with_raw_response.create(
            model="stable", messages=messages, max_tokens=8, user=f"user-{index}"
        )
        found.append((raw.headers["x-ab-test-variant"], raw.headers["x-ab-feedback-token"]))
    await client.close()
    return found


async def say(system: System, token: str, expect: int = 200, **values: Any) -> Any:
    return await system.api("POST", "feedback", {"token": token, **values}, expect)


async def shows(system: System, test_id: str, expected: dict[str, dict[str, int]]) -> bool:
    metrics = (await system.status(test_id))["metrics"] or {}
    return {
        variant: {name: metrics.get(f"variant_{variant}", {}).get(name, 0) for name in figures}
        for variant, figures in expected.items()
    } == expected


async def test_feedback_is_counted_exactly_also_when_metrics_is_killed_in_between(system: System) -> None:
    test_id = await system.start_test(traffic_split_percent=50)
    given = await tokens(system, 40)
    expected: dict[str, Counter[str]] = {"a": Counter(), "b": Counter()}
    assert {variant for variant, _ in given} == {"a", "b"}

    async def give(part: list[tuple[str, str]], *, first: bool) -> None:
        for index, (variant, token) in enumerate(part):
            up, converted = index % 3 > 0, index % 2 == 0
            assert await say(system, token, thumbs="up" if up else "down", converted=converted) == {"status": "recorded"}
            if first:
                counts = expected[variant]
                counts["thumbs_up" if up else "thumbs_down"] += 1
                counts["conversion_count"] += 1
                counts["conversions"] += converted

    await give(given[:20], first=True)
    system.signal("metrics", signal.SIGKILL)
    await give(given[20:], first=True)
    await asyncio.gather(*(say(system, token, score=4) for _, token in given))
    for variant, _ in given:
        expected[variant]["satisfaction_count"] += 1
    # Once more, and the other way round: it is the first value of each kind that counts.
    await asyncio.gather(*(say(system, token, thumbs="down", score=1, converted=True) for _, token in given))
    await eventually(lambda: shows(system, test_id, {v: dict(c) for v, c in expected.items()}), 60, 0.2)
    system.signal("metrics", signal.SIGKILL)
    await give(given, first=False)
    new = (await tokens(system, 1))[0]
    await say(system, new[1], thumbs="up")
    expected[new[0]]["thumbs_up"] += 1
    await eventually(lambda: shows(system, test_id, {v: dict(c) for v, c in expected.items()}), 60, 0.2)

    async def told() -> Any:
        return (await system.status(test_id))["metrics"]  # none while metrics does not answer in time

    for figures in (await eventually(told, every_s=0.2)).values():
        assert figures["satisfaction_score"] == 4.0
        assert figures["thumbs_up_rate"] == 100 * figures["thumbs_up"] / (figures["thumbs_up"] + figures["thumbs_down"])
        assert figures["cost_per_request"] is not None
    result = await system.api("POST", "stop", {"test_id": test_id})
    assert result["metrics_summary"][f"variant_{new[0]}"]["thumbs_up"] == expected[new[0]]["thumbs_up"]
    refused = await say(system, new[1], 409, thumbs="up")
    assert refused["error"]["code"] == "test_ended"


async def test_what_cannot_be_recorded_is_refused_by_name(system: System) -> None:
    await system.start_test(traffic_split_percent=50, primary_metric="thumbs")
    ((_, token),) = await tokens(system, 1)
    forged = await say(system, token[:-4] + "AAAA", 400, thumbs="up")
    assert (forged["error"]["param"], forged["error"]["code"]) == ("token", "invalid_token")
    nothing = await say(system, token, 422)
    assert all(name in nothing["error"]["message"] for name in ("score", "thumbs", "converted"))
    for values, name in (({"score": 0.5}, "score"), ({"score": 5.1}, "score"), ({"thumbs": "sideways"}, "thumbs"),
                         ({"converted": "yes"}, "converted"), ({"stars": 5}, "stars")):  # fmt: skip
        refused = await say(system, token, 422, **values)
        assert refused["error"]["param"] == name
