"""A live test between two vLLM engines on this machine's CPU, as an application and an operator see it."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.harness import eventually
from tests.system import ROOT, System, running

MODELS = ROOT / "infra" / "models"
DIGESTS = json.loads((MODELS / "digests.json").read_text())
MESSAGES: Any = [{"role": "user", "content": "Tell me a story about a fox."}]

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def config() -> dict[str, Any]:
    models = [
        {
            "name": name, "engine": "vllm", "path": str(MODELS / name), "digest": DIGESTS[name],
            "engine_args": {"max_model_len": 512, "enforce_eager": True}, "max_concurrency": 32,
        }
        for name in ("stable", "canary")
    ]  # fmt: skip
    limits = {"control_per_minute": 0, "control_burst": 1000}
    return {"models": models, "security": {"rate_limit": limits}}


class Application:
    """What a user's program does, through the `openai` SDK."""

    def __init__(self, system: System) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{system.url}/v1", api_key=system.key, max_retries=0, timeout=120)

    async def story(self, model: str = "stable", **options: Any) -> tuple[str | None, str]:
        """(variant, text) of a stream that is read to its end."""
        raw = await self.client.chat.completions.with_raw_response.create(
            model=model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True, **options
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]
        return raw.headers.get("x-ab-test-variant"), "".join(parts)

    async def endless(self, model: str) -> Any:
        """A stream that has begun and would go on for long."""
        stream = await self.client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=440, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        for _ in range(4):
            await anext(stream)
        return stream


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with running(tmp_path, config(), ready_s=300) as system:
        yield system


async def worker(system: System, model: str) -> dict[str, Any]:
    """The row of the only worker of a model."""
    (row,) = (await system.api("GET", f"models/{model}"))["by_worker"]
    return dict(row)


async def busy(system: System, model: str, requests: int) -> bool:
    """Whether vLLM itself says that so many requests run."""
    return bool((await worker(system, model))["engine_running"] == requests)


def hosts(system: System) -> dict[int, list[int]]:
    """Processes of vLLM by the one that holds the engine: its own id, and those below it."""
    (inference,) = system.pids("inference")
    found = {}
    for child in psutil.Process(inference).children():
        if any("vllm_host" in part for part in child.cmdline()):
            found[child.pid] = [below.pid for below in child.children(recursive=True)]
    return found


async def test_two_engines_side_by_side(system: System) -> None:
    app = Application(system)
    expected = {variant: (await app.story(model))[1] for variant, model in (("a", "stable"), ("b", "canary"))}
    assert expected["a"] != expected["b"]
    assert all(expected.values())

    test_id = await system.start_test(traffic_split_percent=40)
    told = await asyncio.gather(*(app.story(user=f"user-{number}") for number in range(48)))
    again = await asyncio.gather(*(app.story(user=f"user-{number}") for number in range(16)))
    assert [variant for variant, _ in told[:16]] == [variant for variant, _ in again]
    assert all(text == expected[str(variant)] for variant, text in (*told, *again))
    seen = Counter(variant for variant, _ in (*told, *again))
    assert set(seen) == {"a", "b"}

    # A client that hangs up: the engine stops, and nobody is blamed.
    stream = await app.endless("canary")
    await eventually(lambda: busy(system, "canary", 1), 60, 0.05)
    await stream.close()
    await eventually(lambda: busy(system, "canary", 0), 60, 0.05)

    async def counted() -> bool:
        metrics = (await system.status(test_id))["metrics"] or {}
        return {name[-1]: figures["request_count"] for name, figures in metrics.items()} == dict(seen)

    await eventually(counted, 60, 0.2)
    result = await system.api("POST", "stop", {"test_id": test_id})
    report = await system.api("GET", f"tests/{test_id}/report")
    summary = report["result"]["metrics_summary"]
    for variant, model in (("a", "stable"), ("b", "canary")):
        figures = summary[f"variant_{variant}"]
        assert figures["digests"] == {DIGESTS[model]: seen[variant]}
        assert figures["error_count"] == 0
        assert figures["completion_tokens"] == 24 * seen[variant]
        assert figures["avg_ttft_ms"] > 0
    assert result["verdict"]["digests"] == {"a": DIGESTS["stable"], "b": DIGESTS["canary"]}
    page = await system.client.get(f"/v1/ab-testing/tests/{test_id}/report", headers={"Accept": "text/markdown"})
    assert f"{DIGESTS['canary']} ({seen['b']} requests)" in page.text

    await killed_in_mid_stream(system, app, expected)
    await app.client.close()


async def killed_in_mid_stream(system: System, app: Application, expected: dict[str, str]) -> None:
    """kill -9 of one engine while both answer: that answer fails, the model comes back, the other goes on."""
    before = hosts(system)
    assert len(before) == 2
    names = {"stable": expected["a"], "canary": expected["b"]}
    streams = {name: await app.endless(name) for name in names}
    host, below = next(iter(before.items()))
    os.kill(host, signal.SIGKILL)

    async def ends(stream: Any) -> str:
        try:
            return str([chunk async for chunk in stream][-1].choices[0].finish_reason)
        except openai.APIError as exc:
            return f"error: {exc}"

    ended = dict(zip(streams, await asyncio.gather(*map(ends, streams.values())), strict=True))
    (victim,) = [name for name, how in ended.items() if how.startswith("error")]
    (other,) = set(names) - {victim}
    assert ended[other] == "length"
    row = await worker(system, victim)
    assert row["state"] != "ready"
    assert "as the engine before it ended" in row["reason"], row
    assert (await app.story(other))[1] == names[other]
    await eventually(lambda: not any(map(psutil.pid_exists, below)), 60, 0.1)

    async def back() -> bool:
        return bool((await worker(system, victim))["state"] == "ready")

    await eventually(back, 150, 0.3)
    assert (await app.story(victim))[1] == names[victim]
    assert (await worker(system, victim))["restarts"] == 1
