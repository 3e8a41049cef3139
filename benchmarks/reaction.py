"""How fast a dead canary is out, and how fast a window becomes a verdict: `python -m benchmarks.reaction [--runs N]`.

The whole product (`cypria up`) in front of two OpenAI-compatible upstreams that note when each request came. 50
requests/s, 20 % of them the canary's, each of a user of its own. Two kinds of run: the canary is healthy for some
seconds and then answers every request with 500, and it does so from the start. *Seconds* are from the first failing
canary request to the last canary request that reached the upstream; the load goes on for 3 s after the rollback, so
that a late one would be seen. A third kind has the router's breaker out of the way (`max_consecutive_errors` 100,000):
it shows what the monitor's statistics take alone; no target is set for it.

*Window closed to verdict*: a window is closed by the first WINDOWS message of a later second (`docs/statistics.md`).
Its broker time is compared with the clock of this machine when `cypria.verdict.monitoring` first says that it was
judged (asked every 5 ms around the time when it is due), and with the broker time of the rollback order for those
windows that brought one.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import nats
import uvloop
from aiohttp import web
from nats.errors import Error as NatsError

from benchmarks.report import Figure, figure, percentile, say, table
from schemas import subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import RollbackRequested
from services._cli.load import Load, Tally, drive
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import eventually
from tests.system import System, running

RATE = 50.0
SHARE = 20
AFTER_S = 3.0
ASK_S = 0.005
DEADLINE_S = 30.0
NO_BREAKER = {"max_consecutive_errors": 100_000}


class Upstream(FakeOpenAI):
    """Notes when each request came (monotonic seconds)."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[float] = []
        self.failed: list[float] = []

    async def _guard(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic()
        self.came.append(now)
        if self.behaviour.status:
            self.failed.append(now)
        return await super()._guard(request)


@dataclass
class Verdicts:
    """Delays from the end of a window to its verdict, in milliseconds; those to its rollback order apart.

    Windows count from ``since`` (Unix seconds): a test that has just begun is first brought up to date with older ones.
    """

    seen: list[float] = field(default_factory=list)
    orders: list[float] = field(default_factory=list)
    since: float = 0.0

    async def watch(self, nc: Any) -> None:
        """Ask the monitor what it judged last, often when a verdict is due."""
        known: str | None = None
        due = 0.0
        while True:
            judged = await last_check(nc)
            now = time.time()
            if judged is not None and judged != known:
                closed = datetime.fromisoformat(judged).timestamp()
                if known is not None and closed >= self.since:
                    self.seen.append(1000 * (now - closed))
                known, due = judged, closed + 0.9
            # The next window closes a second after this one: nobody is asked in between, nor often when no test runs.
            await asyncio.sleep(due - now if now < due else ASK_S if now < due + 2 else 0.1)


async def last_check(nc: Any) -> str | None:
    """Broker time of the message that closed the last judged window."""
    try:
        reply = await nc.request(subjects.verdict("monitoring"), b"{}", timeout=2)
    except (NatsError, TimeoutError):
        return None
    found = json.loads(reply.data).get("last_check")
    return None if found is None else str(found)


@dataclass(frozen=True)
class Run:
    """One dead canary: what it took to take it out."""

    seconds: float
    requests: int
    rule: str
    order_s: float
    user_failures: int


@contextlib.asynccontextmanager
async def system() -> AsyncIterator[tuple[System, Upstream, dict[str, Any]]]:
    """`cypria up`, its canary's upstream, and connections to its bus as ``router`` and ``monitor``."""
    with tempfile.TemporaryDirectory(prefix="cypria-bench-") as folder:
        async with Upstream() as stable, Upstream() as canary:
            models = [
                {"name": name, "engine": "openai", "base_url": upstream.base_url}
                for name, upstream in (("stable", stable), ("canary", canary))
            ]
            config = {
                "models": models,
                "security": {"rate_limit": {"control_per_minute": 0}},
                "logging": {"level": "WARNING"},
            }
            async with running(Path(folder), config) as up:
                data = up.data_dir / "nats"
                passwords = json.loads((data / "passwords.json").read_text())
                port = re.search(r"^port: (\d+)", (data / "nats.conf").read_text(), re.MULTILINE)
                assert port is not None
                url = f"nats://127.0.0.1:{port.group(1)}"
                bus = {
                    user: await nats.connect(url, user=user, password=passwords[user], inbox_prefix=f"_INBOX.{user}")
                    for user in ("router", "monitor")
                }
                try:
                    yield up, canary, bus
                finally:
                    for connection in bus.values():
                        await connection.close()


async def dead_canary(
    up: System, canary: Upstream, bus: dict[str, Any], verdicts: Verdicts, *, healthy_s: float, breaker: bool
) -> Run:
    """Start a test, let the canary die after ``healthy_s`` (0: from the start), and see it out."""
    canary.came.clear()
    canary.failed.clear()
    canary.behaviour.status = 0 if healthy_s else 500
    body: dict[str, Any] = {} if breaker else {"failure_criteria": NO_BREAKER}
    test_id = await up.start_test(traffic_split_percent=SHARE, **body)
    verdicts.since = time.time() + 0.5
    tally, done = Tally(), asyncio.Event()
    load = asyncio.create_task(
        drive(Load(up.url, up.key, "stable", RATE), seconds=healthy_s + DEADLINE_S, tally=tally, stop=done.is_set)
    )

    async def rolled_back() -> bool:
        return (await up.status(test_id))["status"] == "rolled_back"

    try:
        await asyncio.sleep(healthy_s)
        canary.behaviour.status = 500
        await eventually(rolled_back, DEADLINE_S, 0.2)
        await asyncio.sleep(AFTER_S)
    finally:
        done.set()
        await load
    first = canary.failed[0]
    stored = await bus["monitor"].jetstream().get_last_msg("EVENTS", subjects.rollback(test_id))
    order = CloudEvent[RollbackRequested].model_validate_json(stored.data).data.order
    if order.actor == "monitor" and order.verdict is not None and order.verdict.tick is not None:
        closed = await closed_at(bus["monitor"], order.verdict.tick)
        if closed is not None:
            verdicts.orders.append(order_time(stored) - closed)
    died = time.time() - (time.monotonic() - first)
    return Run(
        seconds=canary.came[-1] - first,
        requests=sum(at >= first for at in canary.came),
        rule=f"{order.actor}: {order.rule}",
        order_s=order_time(stored) / 1000 - died,
        user_failures=tally.failed,
    )


def order_time(message: Any) -> float:
    """Broker time of a stored message, in milliseconds."""
    found = message.time
    if isinstance(found, str):
        found = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", found))
    return float(found.timestamp()) * 1000


async def closed_at(nc: Any, second: int) -> float | None:
    """Broker time in milliseconds of the first WINDOWS message of a later second; None when it is far back."""
    js = nc.jetstream()
    last = (await js.stream_info("WINDOWS")).state.last_seq
    earliest = None
    for sequence in range(last, max(0, last - 400), -1):
        at = order_time(await js.get_msg("WINDOWS", sequence))
        if at // 1000 <= second:
            return earliest
        earliest = at
    return None


def report(kind: str, runs: list[Run], *, must: bool) -> list[Figure]:
    """The worst and the middle of some runs."""
    seconds = [run.seconds for run in runs]
    requests = [float(run.requests) for run in runs]
    rules = ", ".join(f"{rule} {count}" for rule, count in Counter(run.rule for run in runs).most_common())
    say(f"reaction: {kind}: rules {rules}; {sum(run.user_failures for run in runs)} failures seen by users")
    return [
        figure(f"{kind}: first failure to last canary request, worst of {len(runs)}", max(seconds), "s",
               must=3.0 if must else None),
        figure(f"{kind}: first failure to last canary request", seconds, "s"),
        figure(f"{kind}: canary requests from the first failure on", requests),
        figure(f"{kind}: failures seen by users", sum(run.user_failures for run in runs), must=0.0 if must else None),
    ]  # fmt: skip


async def healthy(up: System, canary: Upstream, verdicts: Verdicts, windows: int) -> None:
    """A test in which nothing happens, until so many more windows have been judged."""
    canary.behaviour.status = 0
    test_id = await up.start_test(traffic_split_percent=SHARE)
    verdicts.since = time.time() + 0.5
    wanted, done = len(verdicts.seen) + windows, asyncio.Event()
    load = asyncio.create_task(drive(Load(up.url, up.key, "stable", RATE), seconds=3.0 * windows, stop=done.is_set))
    try:
        await eventually(lambda: len(verdicts.seen) >= wanted, 2.0 * windows + DEADLINE_S, 0.2)
    finally:
        done.set()
        await load
    await up.api("POST", "stop", {"test_id": test_id})


async def measure(*, runs: int = 10, alone: int = 5, windows: int = 120) -> list[Figure]:
    """``runs`` of each of the two kinds, ``alone`` without the breaker, and ``windows`` of a healthy test."""
    rng = random.Random(1)
    verdicts = Verdicts()
    figures: list[Figure] = []
    async with system() as (up, canary, bus):
        watch = asyncio.create_task(verdicts.watch(bus["router"]))
        try:
            say(f"reaction: {windows} windows of a healthy test")
            await healthy(up, canary, verdicts, windows)
            for kind, count, at_first, breaker in (
                ("canary goes dead", runs, True, True),
                ("canary dead from the start", runs, False, True),
                ("goes dead, monitor alone", alone, True, False),
            ):
                found = []
                for number in range(count):
                    healthy_s = rng.uniform(3.0, 5.0) if at_first else 0.0
                    found.append(await dead_canary(up, canary, bus, verdicts, healthy_s=healthy_s, breaker=breaker))
                    run = found[-1]
                    say(
                        f"reaction: {kind}, run {number + 1} of {count}: {run.seconds:.2f} s, {run.requests} canary "
                        f"requests, {run.rule}, ordered after {run.order_s:.2f} s"
                    )
                if found:
                    figures += report(kind, found, must=breaker)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
    count = len(verdicts.seen)
    figures += [
        figure(f"window closed to verdict, p50 of {count}", percentile(verdicts.seen, 0.5), "ms"),
        figure("window closed to verdict, p99", percentile(verdicts.seen, 0.99), "ms", must=500.0, aim=200.0),
        figure("window closed to verdict, slowest", max(verdicts.seen, default=float("nan")), "ms"),
        figure("window closed to rollback order stored", verdicts.orders, "ms", must=500.0, aim=200.0),
    ]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of each kind with the breaker")
    parser.add_argument("--alone", type=int, default=5, help="with the monitor alone")
    parser.add_argument("--windows", type=int, default=120, help="of a healthy test, to be judged")
    options = parser.parse_args()
    print(table(uvloop.run(measure(runs=options.runs, alone=options.alone, windows=options.windows))))


if __name__ == "__main__":
    main()
