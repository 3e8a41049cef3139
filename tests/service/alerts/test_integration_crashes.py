"""kill -9 of the alerts service and of subscribers' processes: nothing is lost, and only what was under way comes twice."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from schemas import subjects
from schemas.v1.common import Outcome
from schemas.v1.windows import Cell, Watermark, Window
from tests.harness import eventually
from tests.service.alerts.occasions import behaving, calls, happen, hosts, standing
from tests.service.alerts.receivers import Got, Receiver
from tests.service.alerts.side import Side

LONG_S = 60


async def idle(side: Side, *names: str) -> bool:
    if not await side.answers():
        return False
    found = [await standing(side, name) for name in names]
    return all(not one["waiting"] and not one["in_hand"] for one in found)


def posts(receiver: Receiver, path: str = "/") -> list[Got]:
    return [got for got in receiver.got if got.path == path]


@contextlib.asynccontextmanager
async def traffic(side: Side) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Five windows a second until what it gives is called: that closes the last one and says how many requests there were."""
    metrics = await side.server.connect("metrics")
    over = asyncio.Event()

    async def publish(*cells: Cell) -> None:
        window = Window(partition=0, writer="w", watermark=Watermark(), cells=list(cells))
        await metrics.jetstream().publish(subjects.window(0), window.model_dump_json().encode())

    async def run() -> int:
        sent = 0
        while not over.is_set():
            await publish(Cell(test="t1", variant="b", share_bp=1, done=3, outcomes={Outcome.OK: 3}))
            sent += 3
            await asyncio.sleep(0.2)
        await asyncio.sleep(1.1)  # the window that closes the last has to belong to another second
        await publish()
        return sent

    running = asyncio.create_task(run())

    async def end() -> int:
        over.set()
        return await running

    try:
        yield end
    finally:
        over.set()
        await running
        await metrics.close()


@pytest.mark.parametrize(
    ("replicas", "kills"), [(1, 3), pytest.param(3, 20, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]
)
async def test_kills_at_random_moments_lose_nothing_and_repeat_only_what_was_under_way(
    side: Side, tmp_path: Path, replicas: int, kills: int
) -> None:
    draw = random.Random(8)
    folder = behaving(tmp_path / "packages")
    log = tmp_path / "calls"
    async with Receiver().running() as receiver, contextlib.AsyncExitStack() as stack:
        integrations = [
            {"type": "subscriber", "entry_point": "behaving", "options": {"log": str(log)}},
            {"type": "webhook", "url": receiver.url, "secret": "s"},
            {"type": "webhook", "name": "figures", "url": f"{receiver.url}/figures", "secret": "s", "window_seconds": 1,
             "events": ["metric_window"]},
        ]  # fmt: skip

        def start() -> subprocess.Popen[bytes]:
            own = tmp_path / f"replica{len(side.processes)}"
            own.mkdir()
            return side.process(own, path=folder, integrations=integrations)

        processes = [start() for _ in range(replicas)]
        await eventually(side.answers, LONG_S)
        end = await stack.enter_async_context(traffic(side))
        told = []
        for part in range(kills):
            told += [await happen(side, "test.started", f"fine{part}x{n}") for n in range(8)]
            goal = len(posts(receiver)) + draw.randrange(1, 8)
            await eventually(lambda goal=goal: len(posts(receiver)) >= goal, LONG_S)
            process = processes.pop(draw.randrange(replicas))
            children = hosts(process.pid)
            side.kill(process)
            await eventually(lambda children=children: not any(map(psutil.pid_exists, children)))
            processes.append(start())
        await eventually(lambda: {f"{one}.started" for one in told} == {call["event"] for call in calls(log)}, LONG_S)
        sent = await end()
        await eventually(lambda: sum(figures(receiver).values()) == sent, LONG_S)
        await eventually(lambda: idle(side, "behaving", "webhook", "figures"), LONG_S)
    called = Counter(call["event"] for call in calls(log))
    posted = Counter(got.body["id"] for got in posts(receiver))
    assert set(posted) == set(told)
    for seen in (called, posted):
        assert sum(seen.values()) - len(told) <= kills, seen
    assert sum(figures(receiver).values()) == sent


async def test_a_killed_subscriber_is_started_again_and_the_call_is_made_again(side: Side, tmp_path: Path) -> None:
    folder = behaving(tmp_path / "packages")
    log = tmp_path / "calls"
    options = {"log": str(log), "api_token": "hidden-word"}
    entry: dict[str, Any] = {"type": "subscriber", "entry_point": "behaving", "options": options, "timeout_seconds": 60}
    process = side.process(tmp_path, path=folder, integrations=[entry])
    await eventually(side.answers, LONG_S)
    await happen(side, "test.started", "block-once")
    (call,) = await eventually(lambda: calls(log), LONG_S)
    os.kill(call["pid"], signal.SIGKILL)
    await eventually(lambda: len(calls(log)) == 2, LONG_S)
    await eventually(lambda: idle(side, "behaving"), LONG_S)
    assert calls(log)[1]["pid"] != call["pid"]
    await happen(side, "test.started", "raise-once")
    await eventually(lambda: len(calls(log)) == 4, LONG_S)
    await eventually(lambda: idle(side, "behaving"), LONG_S)
    process.terminate()
    await eventually(lambda: process.poll() is not None, LONG_S)
    lines = [json.loads(line) for line in (tmp_path / "alerts.log").read_text().splitlines() if line.startswith("{")]
    assert [line["text"] for line in lines if line["event"] == "subscriber_said"].count("made") == 2
    failed, _ = [line for line in lines if line["event"] == "integration_failed"]
    assert (failed["event_id"], failed["reason"]) == ("block-once.2.1.started", "its process was ended by SIGKILL")
    assert not [line for line in lines if line["event"] == "handler_failed"]
    assert "not today, said ****" in str(lines)
    assert "hidden-word" not in (tmp_path / "alerts.log").read_text()


def figures(receiver: Receiver) -> dict[str, int]:
    """Requests of B by window; a repetition says the same."""
    found: dict[str, int] = {}
    for got in receiver.got:
        if got.body["type"] == "cypria.integration.metric_window.v1":
            requests = got.body["data"]["variants"]["b"]["requests"]
            assert found.setdefault(got.body["id"], requests) == requests
    return found


async def test_two_replicas_tell_once(side: Side, tmp_path: Path) -> None:
    async with Receiver().running() as receiver:
        entry = {"type": "webhook", "url": receiver.url, "secret": "s", "events": ["test.*", "metric_window"],
                 "window_seconds": 1}  # fmt: skip
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            side.process(tmp_path / name, integrations=[entry])
        await eventually(side.answers, LONG_S)
        told = [await happen(side, "test.started", f"t{number}") for number in range(20)]
        async with traffic(side) as end:
            await eventually(lambda: len(figures(receiver)) >= 3, LONG_S)
            sent = await end()
        await eventually(lambda: sum(figures(receiver).values()) == sent, LONG_S)
        await eventually(lambda: {got.body["id"] for got in receiver.got} >= set(told), LONG_S)
        await eventually(lambda: idle(side, "webhook"), LONG_S)
    assert len(receiver.got) == len(told) + len(figures(receiver))


async def test_the_bus_may_go_away_in_between(side: Side, tmp_path: Path) -> None:
    async with Receiver().running() as receiver:
        entry = {"type": "webhook", "url": receiver.url, "secret": "s"}
        side.process(tmp_path, integrations=[entry])
        await eventually(side.answers, LONG_S)
        first = await happen(side, "test.started")
        await eventually(lambda: idle(side, "webhook"), LONG_S)
        side.server.kill()
        side.server.start()
        await eventually(side.answers, LONG_S)
        second = await happen(side, "test.started", "t2")
        await eventually(lambda: len(receiver.got) >= 2, LONG_S)
        await eventually(lambda: idle(side, "webhook"), LONG_S)
    assert [got.body["id"] for got in receiver.got] == [first, second]
