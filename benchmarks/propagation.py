"""How long a change takes to reach every router: `python -m benchmarks.propagation [--changes N] [--routers N]`.

Several router processes on one real nats-server, and a worker that only echoes. A change is written at one router
(each in turn) and is in force at another when that one *serves* by it: each replica gets a plain request every few
milliseconds over its own keep-alive connection, always of the same user, whose arm the change moves; the response
header `X-AB-Test-Variant` tells the arm. So what is measured is what a caller sees, from the moment the change was
sent to the last replica's first answer by it, and nothing is added to the routers but ordinary requests. The
resolution is the gap between two answers of a replica, which is printed; the figures include it. How late this
client's own timers fire is printed too: what the machine adds to every figure while others use it.

Three kinds of change: the split (PATCH), an operator's rollback (POST) and the monitor's (an order on
`cypria.rollback.<test_id>`).
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks.hot_path import call, config, process
from benchmarks.hot_path_parts import Connection
from benchmarks.report import Figure, figure, percentile, say, table
from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.events import RollbackRequested
from schemas.v1.experiment import RollbackOrder
from services._runtime.nats_server import free_port
from tests.harness import NatsServer, eventually

MODEL = "echo-a"
LOW, HIGH = 10, 90
PROBE_S = 0.005
PATIENCE_S = 15.0
MUST_MS, AIM_MS = 100.0, 20.0


def message(method: str, path: str, body: dict[str, Any], *extra: str) -> bytes:
    """A whole HTTP request."""
    data = json.dumps(body).encode()
    lines = (
        f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Authorization: Bearer bench-key",
        "Content-Type: application/json", f"Content-Length: {len(data)}", *extra,
    )  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def probe_request(session: str) -> bytes:
    """An ordinary request of one user."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    return message("POST", "/v1/chat/completions", body, f"X-Session-ID: {session}")


def variant_of(answer: bytes | bytearray) -> str:
    """The arm that an answer names, or ``-``. Raises ValueError when it is not 200."""
    head = bytes(answer).partition(b"\r\n\r\n")[0].lower()
    if not head.startswith(b"http/1.1 200"):
        raise ValueError(f"a router answered: {bytes(answer[:300])!r}")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"x-ab-test-variant":
            return value.strip().decode()
    return "-"


async def connect(port: int) -> Connection:
    """A keep-alive connection to a port."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


@dataclass
class Replica:
    """One router, asked all the time. ``gaps``, ``trips`` and ``late`` (of timers) are in seconds."""

    port: int
    probe: Connection
    control: Connection
    request: bytes = b""
    variant: str = ""
    since: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gaps: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    flips: int = 0

    async def run(self) -> None:
        """Ask every `PROBE_S`, or as soon as the answer before is there."""
        last = due = time.perf_counter()
        while True:
            due = max(due + PROBE_S, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            asked = time.perf_counter()
            self.late.append(asked - due)
            await self.probe.ask(self.request)
            now = time.perf_counter()
            self.trips.append(now - asked)
            self.gaps.append(now - last)
            last = now
            found = variant_of(self.probe.buffer)
            if found != self.variant:
                self.variant, self.since = found, now
                self.flips += 1
                self.changed.set()

    async def until(self, good: Callable[[str], bool]) -> float:
        """When the answers became such that ``good(variant)``."""
        async with asyncio.timeout(PATIENCE_S):
            while not good(self.variant):
                self.changed.clear()
                await self.changed.wait()
        return self.since

    async def tell(self, method: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """One control request at this router. Raises ValueError when it is refused."""
        await self.control.ask(message(method, f"/v1/ab-testing/{verb}", body))
        head, _, data = bytes(self.control.buffer).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"{method} {verb}: {data[:300]!r}")
        return dict(json.loads(data))


@dataclass
class Fleet:
    """All replicas and the monitor's connection."""

    replicas: list[Replica]
    monitor: Any
    test: dict[str, Any] = field(default_factory=dict)

    async def all(self, good: Callable[[str], bool]) -> list[float]:
        """When each replica's answers became good."""
        return list(await asyncio.gather(*(replica.until(good) for replica in self.replicas)))

    async def start(self, share: int) -> None:
        """Start a test and wait until every replica serves by it."""
        body = {"model_a": MODEL, "model_b": "echo-b", "traffic_split_percent": share}
        self.test = await self.replicas[0].tell("POST", "start", body)
        await self.all(lambda variant: variant in {"a", "b"})

    def use(self, session: str) -> None:
        """Ask as this user from now on."""
        for replica in self.replicas:
            replica.request = probe_request(session)

    async def order(self) -> None:
        """Publish a rollback order as the monitor does."""
        now = int(time.time() * 1000)
        test_id = self.test["test_id"]
        order = RollbackOrder(rule="error_rate", reason="a benchmark", actor="monitor", at_ms=now)
        asked = RollbackRequested(test_id=test_id, model_a=MODEL, order=order)
        event_id = f"{test_id}.1.rollback"
        payload = dump(envelope("rollback.requested", event_id, "monitor", now, asked, test_id))
        headers = {"Nats-Msg-Id": event_id, "content-type": "application/cloudevents+json"}
        await self.monitor.jetstream().publish(subjects.rollback(test_id), payload, headers=headers)


def router_config(folder: Path, server: NatsServer, port: int) -> Path:
    """The hot path's configuration, of a router that knows the echoed models only."""
    path = config(folder, server, "router", 9, port)
    content = yaml.safe_load(path.read_text())
    engine = {"engine": "openai", "base_url": "http://127.0.0.1:9/v1"}  # never asked: the echoing worker answers
    content["models"] = [{"name": name, **engine} for name in (MODEL, "echo-b")]
    path.write_text(yaml.safe_dump(content))
    return path


@contextlib.asynccontextmanager
async def fleet(routers: int) -> AsyncIterator[Fleet]:
    """Routers, an echoing worker and a probe on each router."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cypria-bench-")))
        server = NatsServer(folder / "nats")
        server.start()
        stack.callback(server.kill)
        await server.provision()
        password = server.embedded.passwords["inference"]
        log = folder / "log"
        echo = ("benchmarks.hot_path_parts", "echo", server.url, password, MODEL, "echo-b")
        stack.enter_context(process(*echo, ready=True, log=log))
        ports = [free_port() for _ in range(routers)]
        for index, port in enumerate(ports):
            own = folder / f"replica-{index}"
            own.mkdir()
            stack.enter_context(process("services.router", "--config", str(router_config(own, server, port)), log=log))
        for port in ports:
            try:
                await eventually(lambda port=port: call(port, "/ready") == 200, 60, 0.2)
            except AssertionError:
                sys.stderr.write(log.read_text()[-5000:])
                raise
        replicas = [Replica(port, await connect(port), await connect(port)) for port in ports]
        monitor = await server.connect("monitor")
        found = Fleet(replicas, monitor)
        found.use("nobody")
        tasks = [asyncio.create_task(replica.run()) for replica in replicas]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            for replica in replicas:
                replica.probe.done = replica.control.done = None
                replica.probe.transport.close()
                replica.control.transport.close()
            await monitor.close()
            for outcome in ended:
                if isinstance(outcome, Exception):
                    say(f"a probe ended: {outcome!r}")


async def between(some: Fleet) -> None:
    """Make the probes a user who is A's at the low share and B's at the high one; leaves the share low."""
    first = some.replicas[0]
    for attempt in range(100):
        some.use(f"user-{attempt}")
        await first.tell("PATCH", "traffic-split", {"traffic_split_percent": LOW})
        await asyncio.sleep(0.2)
        if any(replica.variant != "a" for replica in some.replicas):
            continue
        await first.tell("PATCH", "traffic-split", {"traffic_split_percent": HIGH})
        await asyncio.sleep(0.2)
        if any(replica.variant != "b" for replica in some.replicas):
            continue
        await first.tell("PATCH", "traffic-split", {"traffic_split_percent": LOW})
        await some.all(lambda variant: variant == "a")
        return
    raise RuntimeError("no user between the two shares was found")


Change = Callable[[Replica], Awaitable[Any]]


async def measure_one(some: Fleet, index: int, change: Change, good: Callable[[str], bool]) -> tuple[float, float]:
    """(seconds until the writer was answered, seconds until every replica served by the change)."""
    writer = some.replicas[index % len(some.replicas)]
    sent = time.perf_counter()
    answered = 0.0

    async def write() -> None:
        nonlocal answered
        await change(writer)
        answered = time.perf_counter() - sent

    _, times = await asyncio.gather(write(), some.all(good))
    return answered, max(times) - sent


async def splits(some: Fleet, count: int, rng: random.Random) -> list[tuple[float, float]]:
    """Split changes, up and down in turn."""
    await some.start(LOW)
    await between(some)
    found = []
    for index in range(count):
        percent, arm = ((HIGH, "b"), (LOW, "a"))[index % 2]
        await asyncio.sleep(rng.uniform(0.03, 0.08))  # out of step with every timer of the product
        body = {"traffic_split_percent": percent}
        change: Change = partial(Replica.tell, method="PATCH", verb="traffic-split", body=body)
        found.append(await measure_one(some, index, change, arm.__eq__))
    await some.replicas[0].tell("POST", "rollback", {})
    await some.all(lambda variant: variant != "b")
    return found


async def rollbacks(some: Fleet, count: int, rng: random.Random, *, by_monitor: bool) -> list[tuple[float, float]]:
    """Rollbacks, each of a new test whose every user is B's."""
    found = []
    for index in range(count):
        await eventually(lambda: all(replica.variant == "-" for replica in some.replicas), PATIENCE_S, 0.005)
        await some.start(100)
        await asyncio.sleep(rng.uniform(0.05, 0.1))
        change: Change = (lambda _writer: some.order()) if by_monitor else (lambda w: w.tell("POST", "rollback", {}))
        found.append(await measure_one(some, index, change, lambda variant: variant != "b"))
    return found


def report(kind: str, found: list[tuple[float, float]], answer: str) -> list[Figure]:
    """p50, p99 and the slowest."""
    answered, everywhere = ([1000 * value for value in values] for values in zip(*found, strict=True))
    return [
        figure(f"{kind}: in force on every router, p50", percentile(everywhere, 0.5), "ms"),
        figure(f"{kind}: in force on every router, p99", percentile(everywhere, 0.99), "ms", must=MUST_MS, aim=AIM_MS),
        figure(f"{kind}: slowest of {len(everywhere)}", max(everywhere), "ms"),
        figure(f"{kind}: {answer}, p50", percentile(answered, 0.5), "ms"),
    ]


async def measure(*, changes: int = 250, routers: int = 3) -> list[Figure]:
    """Run all three kinds of change."""
    rng = random.Random(1)
    figures: list[Figure] = []
    async with fleet(routers) as some:
        say(f"propagation: {changes} split changes over {routers} routers")
        figures += report("split change", await splits(some, changes, rng), "the writer had its 200")
        say(f"propagation: {changes} rollbacks by an operator")
        found = await rollbacks(some, changes, rng, by_monitor=False)
        figures += report("operator's rollback", found, "the writer had its 200")
        say(f"propagation: {changes} rollbacks by the monitor")
        found = await rollbacks(some, changes, rng, by_monitor=True)
        figures += report("monitor's rollback", found, "the stream had it")
        gaps = [1000 * gap for replica in some.replicas for gap in replica.gaps[20:]]
        late = [1000 * value for replica in some.replicas for value in replica.late[20:]]
        figures += [
            figure("resolution: gap between answers of a replica, p50", percentile(gaps, 0.5), "ms"),
            figure("resolution: gap between answers of a replica, p99", percentile(gaps, 0.99), "ms"),
            figure("noise: the client's own timers late by, p99", percentile(late, 0.99), "ms"),
            figure("noise: the client's own timers late by, at most", max(late), "ms"),
        ]
        trips = [1000 * trip for replica in some.replicas for trip in replica.trips]
        say(f"propagation: a probe took {percentile(trips, 0.5):.2f} ms (p50), {percentile(trips, 0.99):.2f} ms (p99)")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=250, help="of each kind")
    parser.add_argument("--routers", type=int, default=3)
    options = parser.parse_args()
    print(table(uvloop.run(measure(changes=options.changes, routers=options.routers))))


if __name__ == "__main__":
    main()
