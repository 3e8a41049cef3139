"""A model that is swapped again and again under load: what must hold however often."""

import asyncio
import shutil
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.harness import eventually
from tests.service.inference.conftest import Reply, Stack

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"
CALLERS = 3


def write_model(folder: Path, seed: int) -> Path:
    """A model of 40 MB in memory that says nonsense, with the demo models' tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=257, bos_token_id=256, pad_token_id=258,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STABLE / name, folder / name)
    return folder


class Traffic:
    """Callers who ask without a pause; ``replies`` in the order in which they were sent."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.replies: list[Reply] = []
        self._over = False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Traffic"]:
        self._over = False
        tasks = [asyncio.create_task(self._ask(stream=bool(index % 2))) for index in range(CALLERS)]
        try:
            yield self
        finally:
            # Not by cancelling: Python 3.11's wait_for, inside nats-py, may swallow that.
            self._over = True
            await asyncio.gather(*tasks)

    async def _ask(self, *, stream: bool) -> None:
        while not self._over:
            reply = await self._stack.router.chat(stream=stream, max_tokens=12, temperature=0, ignore_eos=True)
            self.replies.append(reply)
            await reply.end()


async def swap(stack: Stack, specs: list[dict[str, Any]], times: int) -> list[Reply]:
    """Swap ``m`` so many times between ``specs`` under load; all replies. The weights that were replaced are gone."""
    traffic = Traffic(stack)
    old: list[weakref.ref[Any]] = []
    async with traffic.flowing():
        await _served(traffic)
        for n in range(times):
            old.append(weakref.ref(stack.models.get("m").engine._loop.model))  # type: ignore[union-attr]
            await stack.want("m", specs[(n + 1) % len(specs)])
            await stack.beat("m", lambda b, g=n + 1: (b.generation, b.state, b.next_state) == (g, "ready", ""), 60)
            await eventually(lambda: not stack.models.place("m").leaving)
            await _served(traffic)
    assert not stack.parts.loader._closing
    assert [ref() for ref in old] == [None] * times, "the weights of every engine that was replaced are gone"
    return traffic.replies


async def _served(traffic: Traffic) -> None:
    until = len(traffic.replies) + 2 * CALLERS
    await eventually(lambda: len(traffic.replies) > until)


def check(replies: list[Reply], digests: list[str]) -> None:
    """No request failed, and each swap changed the digest once and for all."""
    failed = [(reply.done.outcome, reply.head) for reply in replies if reply.done.outcome != "length"]
    assert not failed
    assert {reply.done.completion_tokens for reply in replies} == {12}
    seen = [reply.done.digest for reply in sorted(replies, key=lambda reply: int(reply.id[1:]))]
    changes = [digest for index, digest in enumerate(seen) if index == 0 or digest != seen[index - 1]]
    assert changes == digests
