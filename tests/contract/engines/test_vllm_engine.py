"""What only the vLLM engine has to get right: its arguments, its processes, its adapter, what it lets nobody see."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch
from safetensors.torch import save_file

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import EngineError, EngineHead
from services.inference.adapters.vllm_engine import VllmEngine
from services.inference.adapters.vllm_process import LoadError, RefusedError
from services.inference.vllm_host import frames
from tests.contract.engines.conftest import MODELS, VLLM_ARGS, Subject, engine_of
from tests.harness import alive, eventually

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["sure", "colour"],
    "properties": {"sure": {"type": "boolean"}, "colour": {"enum": ["red", "blue"]}},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}]
SECRETS = {"CYPRIA_NATS__PASSWORD": "bus-secret", "HF_TOKEN": "hub-secret", "VLLM_API_KEY": "api-secret", "OTHER": "other-secret"}


def adapter(path: Path) -> Path:
    """A LoRA adapter for the stable model that turns its attention upside down."""
    path.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    noise = torch.Generator().manual_seed(5)
    weights = {}
    for layer in range(3):
        for name, size in (("q_proj", 192), ("v_proj", 64)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(4, 192, generator=noise)
            weights[f"{key}.lora_B.weight"] = torch.randn(size, 4, generator=noise)
    save_file(weights, path / "adapter_model.safetensors", {"format": "pt"})
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    """The stable model with an adapter and with tools, loaded by a worker that knows secrets."""
    args = {
        **VLLM_ARGS, "enable_auto_tool_choice": True, "tool_call_parser": "hermes", "max_num_seqs": 4, "tool_strict_level": "parameter",
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        async with engine_of("vllm", adapter=adapter(tmp_path_factory.mktemp("lora") / "a"), engine_args=args) as found:
            yield found


def core(subject: Subject) -> int:
    """The process in which vLLM's engine core runs."""
    (pid,) = [pid for pid in subject.engine.health().pids[1:] if "resource_tracker" not in " ".join(psutil.Process(pid).cmdline())]
    return pid


async def test_an_adapter_changes_what_the_model_says(served: Subject) -> None:
    async def said(name: str) -> str:
        body = {"model": name, "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        host = served.engine._host  # type: ignore[attr-defined]
        stream = await host.open(frames.COMPLETIONS, json.dumps(body).encode())
        while not stream.ended:
            await stream.change()
        await host.leave(stream, 1)
        return str(json.loads(stream.take())["choices"][0]["text"])

    adapted = (await served.ask("completions", prompt="Once upon a time", max_tokens=40, temperature=0, ignore_eos=True)).json
    base = served.engine._start.base  # type: ignore[attr-defined]
    assert adapted["model"] == "m"
    assert adapted["choices"][0]["text"] == await said("m")
    assert adapted["choices"][0]["text"] != await said(base)


async def test_the_answer_follows_a_json_schema(served: Subject) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    reply = (await served.chat(max_tokens=100, response_format=wanted)).json["choices"][0]
    said = json.loads(reply["message"]["content"])
    assert isinstance(said["sure"], bool)
    assert said["colour"] in {"red", "blue"}
    streamed = await served.chat(max_tokens=100, response_format=wanted, stream=True)
    assert json.loads(streamed.text).keys() == {"sure", "colour"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
async def test_a_tool_that_must_be_called_is_called(served: Subject, choice: Any) -> None:
    reply = (await served.chat(max_tokens=200, temperature=0, tools=TOOLS, tool_choice=choice)).json["choices"][0]
    call = reply["message"]["tool_calls"][0]["function"]
    assert call["name"] == "paint"
    assert json.loads(call["arguments"])["colour"] in {"red", "blue"}


async def test_the_engines_own_words_for_what_it_does_not_take(served: Subject) -> None:
    for body, words in (
        ({"temperature": 9}, "temperature must be in"),
        ({"chat_template": "{{ 1 }}"}, "untrusted chat template"),
        ({"max_tokens": "many"}, "max_tokens"),
    ):
        answer = await served.chat(**body)
        assert answer.head.status == 400
        assert words in answer.json["error"]["message"]


async def test_what_the_engine_knows_of_a_request(served: Subject) -> None:
    prompt = "A long story begins with a long prompt. " * 8
    await served.chat(prompt, max_tokens=2)
    answer = await served.chat(prompt, max_tokens=30, ignore_eos=True, n=2)
    report, usage = answer.request.report, answer.json["usage"]
    assert report.queue_s >= 0
    assert report.first_token_s > 0
    assert report.gpu_us > 0
    assert (report.prompt_tokens, report.completion_tokens) == (usage["prompt_tokens"], 60)
    assert report.cached_tokens == usage["prompt_tokens_details"]["cached_tokens"] > 0


async def test_what_was_used_up_is_known_of_a_request_that_was_cut_short(served: Subject) -> None:
    request = served.request("chat", messages=[{"role": "user", "content": "Go on"}], max_tokens=400, stream=True, ignore_eos=True)
    pieces = served.engine.generate(request)
    for _ in range(4):
        await anext(pieces)
    await pieces.aclose()
    assert request.report.completion_tokens >= 2
    assert request.report.prompt_tokens > 2
    assert request.report.gpu_us > 0


async def test_requests_beyond_its_sequences_wait_in_the_engine(served: Subject) -> None:
    tasks = [asyncio.create_task(served.chat(max_tokens=100, ignore_eos=True)) for _ in range(6)]
    await eventually(lambda: served.engine.health().running == 4 and served.engine.health().waiting == 2)
    assert 0 < served.engine.health().kv_cache < 1
    reports = [answer.request.report for answer in await asyncio.gather(*tasks)]
    assert max(report.queue_s for report in reports) > min(report.first_token_s for report in reports)
    # Each moment is counted once: together they had no more than there was.
    busy = max(report.first_token_s for report in reports) * 1e6 * 10
    assert 0 < sum(report.gpu_us for report in reports) < busy
    await eventually(lambda: served.engine.health().running == 0)


async def test_a_reader_that_is_slow_holds_up_nobody_else(served: Subject) -> None:
    wordy = {"logprobs": 5, "max_tokens": 200, "ignore_eos": True, "temperature": 1.5, "n": 4}
    request = served.request("completions", prompt="x", stream=True, **wordy)
    pieces = served.engine.generate(request)
    assert isinstance(await anext(pieces), EngineHead)
    (stream,) = served.engine._host._streams.values()  # type: ignore[attr-defined]
    await eventually(lambda: served.running() == 0)
    assert (await served.chat(max_tokens=20)).head.status == 200
    waiting = sum(map(len, stream.pieces))
    assert frames.WINDOW < waiting < 2 * frames.WINDOW
    assert not stream.ended
    size = 0
    async for piece in pieces:
        size += len(piece)  # type: ignore[arg-type]
    assert size > waiting
    assert request.report.completion_tokens == 800


async def test_the_host_gets_no_secrets_and_nothing_of_prompts_is_written(served: Subject, capfd: pytest.CaptureFixture[str]) -> None:
    pids = served.engine.health().pids
    for pid in pids:
        environ = Path(f"/proc/{pid}/environ").read_text()
        assert not [name for name, value in SECRETS.items() if value in environ or f"{name}=" in environ]
    assert "HF_HUB_OFFLINE=1" in Path(f"/proc/{pids[0]}/environ").read_text()
    tail = served.engine._host._log._tail  # type: ignore[attr-defined]
    await served.chat("a very private matter", max_tokens=4)
    await served.chat("a very private matter", max_tokens=9999)
    await served.chat("a very private matter", temperature="x")
    assert tail
    assert "private matter" not in "\n".join(tail) + "".join(capfd.readouterr())


@pytest.mark.parametrize("which", ["core", "host"])
async def test_a_process_that_hangs_is_noticed_and_forgiven(served: Subject, which: str) -> None:
    await eventually(lambda: served.engine.health().silent_s == 0)
    running = asyncio.create_task(served.chat(max_tokens=100, ignore_eos=True, stream=True))
    await eventually(lambda: served.running() == 1)
    pid = core(served) if which == "core" else served.engine.health().pids[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(lambda: served.engine.health().silent_s > 0.6)
        assert served.engine.dead() is None
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: served.engine.health().silent_s == 0)
    assert (await running).events[-1]["usage"]["completion_tokens"] == 100


async def test_a_core_that_hangs_without_work_is_noticed(served: Subject) -> None:
    pid = core(served)
    await eventually(lambda: served.running() == 0)
    os.kill(pid, signal.SIGSTOP)
    try:
        await eventually(lambda: served.engine.health().silent_s > 0.6)
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: served.engine.health().silent_s == 0)


async def test_embeddings_of_a_model_loaded_for_them_until_its_core_is_killed() -> None:
    async with engine_of("vllm", engine_args={**VLLM_ARGS, "runner": "pooling", "convert": "embed"}) as embedding:
        reply = (await embedding.ask("embeddings", input=["a fox", "a river", "a fox"])).json
        vectors = [item["embedding"] for item in reply["data"]]
        assert vectors[0] == pytest.approx(vectors[2], abs=0.02)
        assert vectors[0] != pytest.approx(vectors[1], abs=0.02)
        assert reply["usage"]["prompt_tokens"] > 0
        with pytest.raises(EngineError, match="makes no text") as refused:
            await embedding.chat(max_tokens=3)
        assert refused.value.status == 400
        engine, pids = embedding.engine, embedding.engine.health().pids
        assert engine.memory_bytes() > 100 << 20
        assert engine.version.startswith("vllm ")
        os.kill(core(embedding), signal.SIGKILL)
        await eventually(engine.dead)
        assert engine.dead() == "vLLM's engine core has died"
        with pytest.raises(EngineError) as late:
            await embedding.ask("embeddings", input="a fox")
        assert (late.value.status, late.value.reset) == (503, True)
        await eventually(lambda: not alive(pids))
        assert engine.memory_bytes() == 0


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_load_that_is_cancelled_leaves_nothing(stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen(["true"]) as gone:  # a worker that was killed
        gone.wait()
        (tmp_path / f"cypria-vllm-{gone.pid}-x").mkdir()
    told: list[str] = []
    engine = VllmEngine(Model(name="m", engine="vllm", path=MODELS / "stable", engine_args=VLLM_ARGS))
    loading = asyncio.create_task(engine.load(lambda doing, _: told.append(doing)))
    await eventually(lambda: "importing vLLM" in told)
    (pid,) = engine.health().pids
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    loading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    assert not alive([pid])
    assert not list(tmp_path.iterdir())
    assert engine.health().pids == ()


async def test_why_a_load_failed_is_said_in_vllms_words() -> None:
    async def reason(kind: type[LoadError], **args: Any) -> str:
        engine = VllmEngine(Model(name="m", engine="vllm", path=MODELS / "stable", engine_args={**VLLM_ARGS, **args}))
        with pytest.raises(LoadError) as caught:
            await engine.load()
        assert type(caught.value) is kind
        assert engine.dead() is None
        return str(caught.value)

    cache, unknown = await asyncio.gather(
        reason(LoadError, kv_cache_memory_bytes=1000), reason(RefusedError, task="generate")
    )
    assert cache.startswith("ValueError: No available memory for the cache blocks")
    assert unknown.startswith("engine_args.task: this vLLM has no such argument")


WORKER = """
import asyncio, os, sys
from pathlib import Path
from services._runtime.settings_engines import Model
from services.inference.adapters.vllm_engine import VllmEngine

async def main():
    engine = VllmEngine(Model(name="m", engine="vllm", path=Path(sys.argv[1]), engine_args={"enforce_eager": True}))
    await engine.load()

asyncio.run(main())
"""


async def test_a_worker_that_is_killed_takes_its_engine_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKER, MODELS / "stable"]) as worker:
        below = psutil.Process(worker.pid).children
        # The host and the engine core.
        await eventually(lambda: len(below(recursive=True)) >= 2, 60)
        pids = [child.pid for child in below(recursive=True)]
        os.kill(pids[0], signal.SIGSTOP)
        worker.kill()
        worker.wait()
        await eventually(lambda: not alive(pids))
