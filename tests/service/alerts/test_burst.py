"""A burst of alerts through three replicas that die of kill -9 all the while: all arrive, in order, and once."""

import asyncio
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from schemas.v1.common import AlertLevel
from services.alerts.domain.wording import MAY_BE_REPEAT
from tests.harness import eventually
from tests.service.alerts.receivers import Got, Receiver
from tests.service.alerts.side import Side
from tests.service.alerts.webhook import Call

SEED = int(os.environ.get("CHAOS_SEED", "20"))
STORIES: tuple[tuple[tuple[str, bool], ...], ...] = (
    (("CRITICAL", False),),
    (("WARNING", False), ("WARNING", False), ("CRITICAL", False)),
    (("WARNING", False), ("INFO", True)),
    (("WARNING", False), ("CRITICAL", False), ("INFO", True), ("WARNING", False)),
)
"""What happens in an incident: (level, resolved); a level that was told already is not told again."""
NEWS = ([0], [0, 2], [0, 1], [0, 1, 2, 3])
"""Which events of each story are news."""


@dataclass
class Burst:
    """The alerts of many incidents, interleaved; each incident's in their order."""

    seed: int
    count: int
    events: list[tuple[str, str, str, bool]] = field(default_factory=list)
    expected: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = random.Random(self.seed)
        waiting: list[list[tuple[str, str, str, bool]]] = []
        while sum(map(len, waiting)) < self.count:
            name, kind = f"i{len(waiting):04}", draw.randrange(len(STORIES))
            steps = [(name, f"{name}.{n}", level, resolved) for n, (level, resolved) in enumerate(STORIES[kind])]
            self.expected[name] = [steps[n][1] for n in NEWS[kind]]
            waiting.append(steps)
        while waiting:
            one = waiting[draw.randrange(min(40, len(waiting)))]
            self.events.append(one.pop(0))
            if not one:
                waiting.remove(one)


@dataclass
class Replicas:
    side: Side
    folder: Path
    destinations: list[dict[str, Any]]
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)

    def start(self) -> None:
        folder = self.folder / f"r{len(self.side.processes)}"
        folder.mkdir()
        self.running.append(self.side.process(folder, *self.destinations))

    def kill(self, index: int) -> None:
        victim = self.running.pop(index)
        assert victim.poll() is None, "it died by itself"
        self.side.kill(victim)
        self.deaths.append(time.monotonic())
        self.start()


def arrivals(found: list[tuple[str, float]]) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """(event ids by incident in the order in which they came first, when each of them came)."""
    order: dict[str, list[str]] = defaultdict(list)
    times: dict[str, list[float]] = defaultdict(list)
    for event_id, at in found:
        if event_id not in times:
            order[event_id.partition(".")[0]].append(event_id)
        times[event_id].append(at)
    return dict(order), times


def repeated_as_they_were(calls: list[Call], deaths: int) -> list[str]:
    """A message comes again only under its id, as it was, and says so. The first of each."""
    said: dict[str, list[str]] = defaultdict(list)
    for call in calls:
        said[call.id].append(call.message)
    assert len(calls) - len(said) <= deaths
    for first, *more in said.values():
        assert [one.removeprefix(f"{MAY_BE_REPEAT}\n") for one in more] == [first.removeprefix(f"{MAY_BE_REPEAT}\n")] * len(more)
        assert all(one.startswith(MAY_BE_REPEAT) for one in more)
    return [first for first, *_ in said.values()]


async def burst(side: Side, folder: Path, count: int, *, deaths: int, delay_s: float) -> None:
    """``deaths`` of them while not all has arrived; a receiver takes ``delay_s`` for each."""
    plan, draw = Burst(SEED, count), random.Random(SEED)

    def moody(_n: int, _got: Got) -> tuple[int, Any, dict[str, str]]:
        status = draw.choices((200, 429, 500, 503), (94, 2, 2, 2))[0]
        return status, {}, {"Retry-After": "1"} if status == 429 else {}

    side.webhook.behave = lambda _path, _n: draw.choices((200, 429, 500), (95, 2, 3))[0]
    side.webhook.delay_s = delay_s
    async with Receiver(moody).running() as machine:
        destinations = [
            side.slack(repeat_interval_seconds=3600), side.slack("grouped", group_seconds=1),
            {"type": "webhook", "name": "machine", "url": machine.url, "secret": "s"},
        ]
        replicas = Replicas(side, folder, destinations)
        for _ in range(3):
            replicas.start()
        await eventually(side.answers, 60)

        def slack() -> list[tuple[str, float]]:
            return [(c.title.split(": ")[1], c.at) for c in side.webhook.accepted()]

        def machines() -> list[tuple[str, float]]:
            return [(got.body["id"], got.at) for got in machine.got if got.answered == 200]

        async def publish() -> None:
            for name, event_id, level, resolved in plan.events:
                await side.raise_alert(
                    event_id, incident=name, level=AlertLevel(level), resolved=resolved, event_id=event_id
                )

        def complete() -> bool:
            return all(arrivals(found())[0] == plan.expected for found in (slack, machines))

        publishing = asyncio.create_task(publish())
        for _ in range(deaths):
            await asyncio.sleep(draw.uniform(0.05, 1.2))  # the moment of death is the point
            assert not complete(), f"all has arrived after {len(replicas.deaths)} deaths: make the burst longer"
            replicas.kill(draw.randrange(3))
        await publishing
        await eventually(complete, 120, 0.5)
        await eventually(side.consumers_idle, 60)
        assert complete(), "nothing came after the end"
        for name, found in (("slack", slack()), ("machine", machines())):
            repeated = {event_id: at for event_id, at in arrivals(found)[1].items() if len(at) > 1}
            sys.stderr.write(f"{name}: {len(found)} taken, {len(repeated)} more than once, {len(replicas.deaths)} deaths\n")
            more = sum(len(at) - 1 for at in repeated.values())
            assert more <= len(replicas.deaths), "at most the one in flight at each death"
            for event_id, times in repeated.items():
                for at, again in itertools.pairwise(times):
                    assert any(at <= death <= again for death in replicas.deaths), f"{event_id}: nobody had died"
        items = await side.history(limit=1000)
        news = sum(map(len, plan.expected.values()))
        assert len(items) == min(1000, news)
        for one in (one for item in items for one in item["deliveries"]):
            # Who gathers may have died with a rise and what it rises from in hand: then the rise says it all.
            superseded = one["destination"] == "grouped" and "already known here at level CRITICAL" in str(one["reason"])
            assert one["status"] == "sent" or superseded, one
        assert {len(item["deliveries"]) for item in items} == {3}
        groups = side.webhook.accepted("grouped")
        assert len(groups) < news / 2
        repeated_as_they_were(side.webhook.accepted(), len(replicas.deaths))
        told = repeated_as_they_were(groups, len(replicas.deaths))
        sys.stderr.write(f"grouped: {len(groups)} taken, {len(groups) - len(told)} more than once\n")
        lines = [line for message in told for line in message.splitlines() if re.search(r": i\d+\.\d+$", line)]
        assert lines and len(lines) == len(set(lines)), "an alert went with two messages"


@pytest.mark.timeout(300)
async def test_a_burst_through_three_replicas_that_die_arrives_whole_in_order_and_once(side: Side, tmp_path: Path) -> None:
    await burst(side, tmp_path, 100, deaths=3, delay_s=0.05)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_a_thousand_alerts_through_three_replicas_and_thirty_deaths(side: Side, tmp_path: Path) -> None:
    await burst(side, tmp_path, 1000, deaths=30, delay_s=0.1)
