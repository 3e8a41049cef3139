"""Producers of facts and readers of windows for these tests."""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import nats
from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.common import Outcome
from schemas.v1.facts import Admitted, Fact, FactBatch, TestClock
from schemas.v1.windows import OUTCOME_KINDS, Window
from tests.harness import NatsServer

TEST = "ab_test_1"
STARTED_MS = 1_000
EPOCH_S = 10**9
"""Longer than any run of these tests: what counts once in an epoch counts once."""


class Producer:
    """A router of one partition: numbered batches, PubAck awaited, sent again under the same number until acknowledged."""

    def __init__(self, nc: nats.NATS, partition: int, seed: int, epoch: str = "r1-1") -> None:
        self._js = nc.jetstream(timeout=1)
        self.partition = partition
        self._rng = random.Random(seed)
        self._epoch = epoch
        self.n = 0
        self.facts: list[Fact] = []

    def fact(self) -> Fact:
        rng = self._rng
        unit = rng.randrange(2000) * 0x9E37_79B9_7F4A_7C15 % 2**61 * 8 + self.partition
        return Fact(
            test=TEST, variant=rng.choice("aaab"), share_bp=2500, unit=f"{unit:016x}", sticky=rng.random() < 0.8,
            outcome=rng.choices([Outcome.OK, Outcome.TIMEOUT, Outcome.CLIENT_ERROR, Outcome.LENGTH], [90, 6, 2, 2])[0],
            latency_us=rng.randrange(1000, 10**6), ttft_us=rng.randrange(100, 10**5), prompt_tokens=rng.randrange(100),
            cost_nano=rng.randrange(1000),
        )  # fmt: skip

    async def send(self, size: int) -> None:
        self.n += 1
        facts = [self.fact() for _ in range(size)]
        admitted = Counter(f.variant for f in facts)
        batch = FactBatch(
            router_epoch=self._epoch, partition=self.partition, n=self.n, facts=facts,
            tests={TEST: TestClock(started_ms=STARTED_MS, epoch_seconds=EPOCH_S)},
            admitted=[Admitted(test=TEST, variant=v, share_bp=2500, count=c) for v, c in admitted.items()],
        )  # fmt: skip
        data = batch.model_dump_json(exclude_defaults=True).encode()
        while True:
            try:
                await self._js.publish(
                    subjects.metric(self.partition), data,
                    headers={"Nats-Msg-Id": f"{self._epoch}.{self.partition}.{self.n}"},
                )  # fmt: skip
                break
            except (nats.errors.Error, OSError):
                await asyncio.sleep(0.05)
        self.facts += facts


def expected(producers: list[Producer]) -> dict[str, Any]:
    """What the totals of everything acknowledged must be."""
    facts = [f for p in producers for f in p.facts]
    return {
        "done": sum(f.outcome is not Outcome.CLIENT_ERROR for f in facts),
        "admitted": len(facts),
        "outcomes": dict(Counter(f.outcome.value for f in facts)),
        "latency_us": sum(f.latency_us or 0 for f in facts if f.outcome in {Outcome.OK, Outcome.LENGTH}),
        "prompt_tokens": sum(f.prompt_tokens for f in facts),
        "cost_nano": sum(f.cost_nano for f in facts),
        "units": len({f.unit for f in facts if f.sticky}) + sum(not f.sticky for f in facts),
        "first_errors": len({f.unit for f in facts if f.sticky and f.outcome is Outcome.TIMEOUT})
        + sum(not f.sticky and f.outcome is Outcome.TIMEOUT for f in facts),
        "first_outcomes": {k: n for k in OUTCOME_KINDS if (n := _units_with(facts, k))},
    }


def _units_with(facts: list[Fact], kind: Outcome) -> int:
    mine = [f for f in facts if f.outcome is kind]
    return len({f.unit for f in mine if f.sticky}) + sum(not f.sticky for f in mine)


def totals(windows: list[Window]) -> dict[str, Any]:
    """The same of windows."""
    cells = [c for w in windows for c in w.cells]
    outcomes: Counter[str] = Counter()
    first: Counter[Outcome] = Counter()
    for cell in cells:
        outcomes.update({k.value: v for k, v in cell.outcomes.items()})
        first.update(cell.units.first_outcomes)
    return {
        "done": sum(c.done for c in cells),
        "admitted": sum(c.admitted for c in cells),
        "outcomes": dict(outcomes),
        "latency_us": sum(c.latency.total for c in cells),
        "prompt_tokens": sum(c.prompt_tokens for c in cells),
        "cost_nano": sum(c.cost.total for c in cells),
        "units": sum(c.units.new_test for c in cells),
        "first_errors": sum(c.units.first_errors_test for c in cells),
        "first_outcomes": dict(first),
    }


async def stored_windows(server: NatsServer) -> list[tuple[int, Window]]:
    """All of WINDOWS but what is no window."""
    nc = await server.connect("metrics")
    try:
        js = nc.jetstream(timeout=30)
        info = await js.stream_info(streams.WINDOWS.name)
        found, seen = [], 0
        if info.state.messages:
            config = nats.js.api.ConsumerConfig(
                ack_policy=nats.js.api.AckPolicy.NONE, mem_storage=True, inactive_threshold=120
            )
            consumer = await js.add_consumer(streams.WINDOWS.name, config)
            sub = await js.pull_subscribe_bind(consumer.name, stream=streams.WINDOWS.name)
            while seen < info.state.messages:
                for message in await sub.fetch(500, timeout=30):
                    seen += 1
                    with contextlib.suppress(ValidationError):
                        found.append((message.metadata.sequence.stream, Window.model_validate_json(message.data)))
        return found
    finally:
        await nc.close()


async def folded_up_to(server: NatsServer, producers: list[Producer]) -> bool:
    """Whether the last window of each partition contains everything that its producers sent."""
    nc = await server.connect("metrics")
    try:
        js = nc.jetstream(timeout=30)
        for producer in producers:
            try:
                message = await js.get_msg(streams.WINDOWS.name, subject=subjects.window(producer.partition))
                watermark = Window.model_validate_json(message.data or b"").watermark
            except (nats.js.errors.NotFoundError, ValidationError):
                return False
            if watermark.batches.get(producer._epoch, 0) < producer.n:
                return False
        return True
    finally:
        await nc.close()
