"""What only the engine that computes by itself has to get right."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import EngineError
from services.inference.adapters.transformers_engine import TransformersEngine
from services.inference.domain.requests import BadRequestError
from tests.contract.engines.conftest import MODELS, Subject
from tests.harness import eventually

POISON = "~"
"""A character whose embedding is made NaN; no other text touches it."""


async def engine_for(path: Path, **args: Any) -> Subject:
    engine = TransformersEngine(Model(name="m", engine="transformers", path=path, engine_args=args))
    await engine.load()
    await engine.warm()
    return Subject(engine, lambda: engine.running)


def poisoned(tmp_path: Path) -> Path:
    """The stable model with an embedding of its own for reading, of which one row is NaN."""
    path = tmp_path / "poisoned"
    shutil.copytree(MODELS / "stable", path)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][ord(POISON)] = float("nan")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (path / "config.json").write_text(json.dumps(config))
    return path


async def test_one_row_of_nan_fails_alone(tmp_path: Path) -> None:
    subject = await engine_for(poisoned(tmp_path))
    good = "Tell me a story about a fox."
    alone = (await subject.chat(good, max_tokens=60, temperature=0)).json["choices"][0]["message"]["content"]
    assert alone
    results = await asyncio.gather(
        subject.chat(good, max_tokens=60, temperature=0),
        subject.chat(f"Tell me {POISON}", max_tokens=60, temperature=0),
        subject.chat(good, max_tokens=60, temperature=0, stream=True),
        return_exceptions=True,
    )
    assert results[0].json["choices"][0]["message"]["content"] == alone  # type: ignore[union-attr]
    assert results[2].text == alone  # type: ignore[union-attr]
    assert isinstance(results[1], EngineError)
    assert results[1].status == 500
    assert "not finite" in results[1].message
    await eventually(lambda: subject.running() == 0)
    await subject.engine.close()


async def test_the_broken_model_loads_and_fails_every_request() -> None:
    subject = await engine_for(MODELS / "broken")
    for route, body in (("chat", {"messages": [{"role": "user", "content": "hi"}]}), ("completions", {"prompt": "hi"})):
        for stream in (False, True):
            with pytest.raises(EngineError, match="not finite") as caught:
                await subject.ask(route, stream=stream, **body)
            assert caught.value.status == 500
            assert not caught.value.reset
    with pytest.raises(EngineError, match="not finite"):
        await subject.ask("embeddings", input="hi")
    assert subject.engine.dead() is None
    await subject.engine.close()


async def test_models_that_load_at_once_keep_their_own_weights() -> None:
    engines = [TransformersEngine(Model(name="m", engine="transformers", path=MODELS / n)) for n in ("stable", "canary") * 2]
    await asyncio.gather(*(engine.load() for engine in engines))
    subjects = [Subject(engine, lambda: 0) for engine in engines]
    texts = [(await s.chat(max_tokens=40, temperature=0)).json["choices"][0]["message"]["content"] for s in subjects]
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]
    assert all(text.isascii() and text.isprintable() for text in texts)
    for engine in engines:
        await engine.close()


async def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "lacking"
    shutil.copytree(MODELS / "stable", path)
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    engine = TransformersEngine(Model(name="m", engine="transformers", path=path))
    with pytest.raises(ValueError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        await engine.load()
    await engine.close()


async def test_joining_and_leaving_changes_nobodys_text() -> None:
    subject = await engine_for(MODELS / "stable", max_batch_size=3)
    prompts = ["Hi.", "Tell me about rain and rivers, please, in a few words.", "What is tea?", "A fox " * 20, "Why?"]
    lengths = [70, 8, 45, 25, 3]
    alone = [
        (await subject.chat(p, max_tokens=n, temperature=0, ignore_eos=True)).json["choices"][0]["message"]["content"]
        for p, n in zip(prompts, lengths, strict=True)
    ]
    tasks = []
    for p, n in zip(prompts, lengths, strict=True):
        tasks.append(asyncio.create_task(subject.chat(p, max_tokens=n, temperature=0, ignore_eos=True)))
        await asyncio.sleep(0)
    together = [(await task).json["choices"][0]["message"]["content"] for task in tasks]
    assert together == alone
    await subject.engine.close()


async def test_never_half_a_character() -> None:
    subject = await engine_for(MODELS / "stable")
    # At this temperature the model writes arbitrary bytes.
    whole = await subject.ask("completions", prompt="x", max_tokens=300, temperature=2, seed=5, ignore_eos=True)
    text = whole.json["choices"][0]["text"]
    streamed = await subject.ask("completions", prompt="x", max_tokens=300, temperature=2, seed=5, ignore_eos=True, stream=True)
    assert streamed.text == text
    assert streamed.events[-1]["usage"]["completion_tokens"] == 300
    await subject.engine.close()


async def test_logprobs() -> None:
    subject = await engine_for(MODELS / "stable")
    reply = (await subject.chat(max_tokens=5, temperature=0, logprobs=True, top_logprobs=3, ignore_eos=True)).json
    content = reply["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    assert "".join(item["token"] for item in content) == reply["choices"][0]["message"]["content"]
    for item in content:
        assert item["logprob"] <= 0
        assert item["top_logprobs"][0]["token"] == item["token"]
        assert len(item["top_logprobs"]) == 3
    old = (await subject.ask("completions", prompt="Once", max_tokens=4, temperature=0, logprobs=2, ignore_eos=True)).json
    logprobs = old["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == old["choices"][0]["text"]
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 4
    assert (await subject.chat(max_tokens=5)).json["choices"][0]["logprobs"] is None
    await subject.engine.close()


async def test_penalties_and_biases_change_what_is_chosen_of_their_own_row_only() -> None:
    subject = await engine_for(MODELS / "stable")
    asked = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
    plain = (await subject.ask("completions", **asked)).text
    e, z = ord("e"), ord("z")  # token n of these models is byte n
    assert "e" in plain
    biased, forced, fresh, beside = await asyncio.gather(
        subject.ask("completions", **asked, logit_bias={e: -100}),
        subject.ask("completions", **asked, logit_bias={z: 100}),
        subject.ask("completions", **asked, presence_penalty=2, frequency_penalty=2),
        subject.ask("completions", **asked, presence_penalty=0, frequency_penalty=0, logit_bias={}),
    )
    assert "e" not in biased.text
    assert forced.text == "z" * 40
    assert len(set(fresh.text)) > len(set(plain))
    assert beside.text == plain
    await subject.engine.close()


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "temperature": -1}, "temperature"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "n": 0}, "n"),
        ("chat", {"messages": "x"}, "messages"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [1, "x"]}, "prompt"),
        ("completions", {"prompt": [99999]}, "prompt"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("embeddings", {"input": []}, "input"),
        ("completions", {"prompt": "x", "echo": True}, "echo"),
        ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("completions", {"prompt": "x", "n": 2, "best_of": 3}, "best_of"),
        ("completions", {"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias"),
        ("completions", {"prompt": "x", "logit_bias": {"5": 101}}, "logit_bias"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "frequency_penalty": 3}, "frequency_penalty"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}, "tool_choice"),
        ("embeddings", {"input": "x", "encoding_format": "zip"}, "encoding_format"),
        ("embeddings", {"input": "x", "dimensions": 8}, "dimensions"),
    ],
)
async def test_bad_values_are_named(route: str, body: dict[str, Any], param: str) -> None:
    subject = await engine_for(MODELS / "stable")
    with pytest.raises(BadRequestError) as caught:
        await subject.ask(route, **body)
    assert caught.value.param == param
    await subject.engine.close()


async def test_the_loop_stays_free_while_it_generates() -> None:
    subject = await engine_for(MODELS / "stable")
    task = asyncio.gather(*(subject.chat(max_tokens=200, ignore_eos=True, seed=n) for n in range(4)))
    beats = 0
    while not task.done():
        await asyncio.sleep(0.005)
        beats += 1
    await task
    assert beats > 20
    await subject.engine.close()


async def test_unknown_engine_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"engine_args\.wings"):
        TransformersEngine(Model(name="m", engine="transformers", path=MODELS / "stable", engine_args={"wings": 2}))


async def test_threads_are_set() -> None:
    subject = await engine_for(MODELS / "stable", num_threads=1)
    assert await subject.engine._loop.call(torch.get_num_threads) == 1  # type: ignore[attr-defined]
    await subject.engine.close()
