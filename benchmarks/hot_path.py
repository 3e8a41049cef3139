"""The hot path beside a direct connection, in one run: `python -m benchmarks.hot_path [--seconds S] [--rounds N]`.

Targets: ``direct`` to the upstream; ``echo``, through the router to a worker that only echoes (what router and bus
cost); ``openai``, through the router and the real inference worker with engine `openai` to the same upstream. A test
runs on both routed models at 20 %, so assignment, facts and all else are on. Rounds are interleaved; medians are shown
with their range. CPU is from /proc: router + nats-server, and the worker apart. Machines are noisy: only ratios
within a run and CPU per request mean anything.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks.hot_path_parts import Client, request
from services._runtime.nats_server import free_port
from services._runtime.server import die_with_parent
from tests.harness import NatsServer, environment, eventually

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 64
TARGETS = ("direct", "echo", "openai")


def cpu_seconds(pid: int) -> float:
    """User and system CPU of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pid: int) -> float:
    """Resident memory of a process now."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@dataclass
class Bench:
    """The processes, and what each target means."""

    pids: dict[str, int] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def data(self, target: str, *, stream: bool = False, paced: bool = False) -> bytes:
        model = "openai-a" if target == "openai" else "echo-a"
        return request(model, stream=stream, paced=paced, port=self.port(target))

    def port(self, target: str) -> int:
        return self.ports["upstream" if target == "direct" else "router"]

    def cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self.pids.items()}


@contextlib.contextmanager
def process(*command: str, ready: bool = False, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    sink: Any = log.open("ab") if log else subprocess.DEVNULL
    child = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.PIPE if ready else sink, stderr=sink,
        env=environment(PYTHONPATH=str(ROOT)), preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # noqa: PLW1509
    )  # fmt: skip
    try:
        if ready:
            assert child.stdout
            assert child.stdout.readline() == b"ready\n", f"{command} did not start"
        yield child
    finally:
        child.terminate()
        child.wait(15)


def config(folder: Path, server: NatsServer, service: str, upstream: int, port: int) -> Path:
    """A configuration file of one service."""
    models = [
        {
            "name": f"openai-{arm}",
            "engine": "openai",
            "base_url": f"http://127.0.0.1:{upstream}/v1",
            "max_concurrency": 1000,
        }
        for arm in "ab"
    ]
    digest = hashlib.sha256(b"bench-key").hexdigest()
    content = {
        "data_dir": str(folder / service), "models": models, "http": {"port": port}, "logging": {"level": "WARNING"},
        "nats": {"servers": [server.url], "user": service, "password": server.embedded.passwords[service]},
        "security": {
            "api_keys": [{"name": "bench", "role": "admin", "key_sha256": digest}],
            "rate_limit": {"control_per_minute": 0},
        },
        "policies": {"on_monitor_down": "hold"},
    }  # fmt: skip
    path = folder / f"{service}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def call(port: int, path: str, body: dict[str, Any] | None = None) -> int:
    """Status of one plain request."""
    headers = {"Authorization": "Bearer bench-key", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers), timeout=30
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as exc:
        return int(exc.code)
    except OSError:
        return 0


@contextlib.asynccontextmanager
async def system() -> Any:
    """Everything up, with a test on both routed models."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cypria-bench-")))
        server = NatsServer(folder / "nats")
        server.start()
        stack.callback(server.kill)
        await server.provision()
        bench = Bench(ports={"upstream": free_port(), "router": free_port()})
        log = folder / "log"
        start = lambda *command, ready=False: stack.enter_context(process(*command, ready=ready, log=log)).pid  # noqa: E731
        port = bench.ports
        bench.pids["upstream"] = start("benchmarks.hot_path_parts", "upstream", str(port["upstream"]), ready=True)
        password = server.embedded.passwords["inference"]
        bench.pids["echo"] = start(
            "benchmarks.hot_path_parts", "echo", server.url, password, "echo-a", "echo-b", ready=True
        )
        worker = config(folder, server, "inference", port["upstream"], 0)
        router = config(folder, server, "router", port["upstream"], port["router"])
        bench.pids["worker"] = start("services.inference", "--config", str(worker))
        bench.pids["router"] = start("services.router", "--config", str(router))
        assert server.process
        bench.pids["nats-server"] = server.process.pid
        try:
            await eventually(lambda: call(port["router"], "/ready") == 200, 60, 0.2)
        except AssertionError:
            sys.stderr.write(log.read_text()[-5000:])
            raise
        for kind in ("echo", "openai"):
            body = {"model_a": f"{kind}-a", "model_b": f"{kind}-b", "traffic_split_percent": 20, "auto_rollback": False}
            await eventually(lambda body=body: call(port["router"], "/v1/ab-testing/start", body) == 200, 30, 0.5)
        yield bench


def percentile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def middle(values: list[float]) -> str:
    return f"{statistics.median(values):,.3g} ({min(values):,.3g}..{max(values):,.3g})"


class Table:
    """Figures by row and target, over rounds."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], list[float]] = {}

    def add(self, row: str, target: str, value: float) -> None:
        self.cells.setdefault((row, target), []).append(value)

    def median(self, row: str, target: str) -> float:
        return statistics.median(self.cells[row, target])

    def show(self) -> None:
        rows = list(dict.fromkeys(row for row, _ in self.cells))
        print(f"\n| {'':48} | " + " | ".join(f"{target:>28}" for target in TARGETS) + " |")
        print("| --- | " + " | ".join("---:" for _ in TARGETS) + " |")
        for row in rows:
            cells = [middle(self.cells[row, t]) if (row, t) in self.cells else "" for t in TARGETS]
            print(f"| {row:48} | " + " | ".join(f"{cell:>28}" for cell in cells) + " |")


async def saturation(bench: Bench, table: Table, seconds: float) -> None:
    for target in TARGETS:
        async with Client(bench.port(target), CONNECTIONS) as client:
            await client.total(bench.data(target), 500)
            before = bench.cpu()
            count, took = await client.saturate(bench.data(target), seconds)
            used = {name: value - before[name] for name, value in bench.cpu().items()}
        table.add("requests/s, 64 connections", target, count / took)
        if target == "direct":
            table.add("CPU s per 1,000 requests, upstream itself", target, used["upstream"] / count * 1000)
            continue
        table.add(
            "CPU s per 1,000 requests, router + nats-server",
            target,
            (used["router"] + used["nats-server"]) / count * 1000,
        )
        table.add("  router alone", target, used["router"] / count * 1000)
        if target == "openai":
            table.add("  inference worker", target, used["worker"] / count * 1000)


async def latency(bench: Bench, table: Table, seconds: float) -> None:
    for target in TARGETS:
        async with Client(bench.port(target), CONNECTIONS) as client:
            found = await client.paced(bench.data(target), 200, seconds)
        table.add("latency ms at 200/s, p50", target, percentile(found, 0.5) * 1000)
        table.add("latency ms at 200/s, p99", target, percentile(found, 0.99) * 1000)


async def streaming(bench: Bench, table: Table) -> None:
    for target in TARGETS:
        async with Client(bench.port(target), CONNECTIONS) as client:
            before = bench.cpu()
            chunks, took, _ = await client.streams(bench.data(target, stream=True), 10, 0.0)
            used = {name: value - before[name] for name, value in bench.cpu().items()}
            table.add("streaming chunks/s, 64 streams", target, chunks / took)
            if target != "direct":
                cost = (used["router"] + used["nats-server"]) / chunks * 1e6
                table.add("CPU us per chunk, router + nats-server", target, cost)
            _, _, firsts = await client.streams(bench.data(target, stream=True, paced=True), 2, 0.03)
            table.add("64 paced streams: time to first ms, p50", target, percentile(firsts, 0.5) * 1000)
            table.add("64 paced streams: time to first ms, p99", target, percentile(firsts, 0.99) * 1000)


async def memory(bench: Bench, count: int) -> None:
    data = bench.data("echo")
    pid = bench.pids["router"]
    async with Client(bench.port("echo"), CONNECTIONS) as client:
        await client.total(data, 10_000)
        await asyncio.sleep(1)
        first = rss_mb(pid)
        steps = [first]
        for _ in range(5):
            await client.total(data, count // 5)
            steps.append(rss_mb(pid))
    shown = " -> ".join(f"{step:.1f}" for step in steps)
    print(f"\nRouter memory over {count:,} requests (MB, after 10,000 to warm up): {shown}")


def summary(table: Table) -> None:
    m: Callable[[str, str], float] = table.median
    rps = "requests/s, 64 connections"
    print("\nRatios within this run:")

    def added(target: str, row: str) -> float:
        return m(row, target) - m(row, "direct")

    chunks, first = "streaming chunks/s, 64 streams", "64 paced streams: time to first ms, p99"
    for target in ("echo", "openai"):
        print(
            f"  {target:7} rps {m(rps, target) / m(rps, 'direct'):.3f} of direct, "
            f"added p50 {added(target, 'latency ms at 200/s, p50'):.2f} ms, "
            f"added p99 {added(target, 'latency ms at 200/s, p99'):.2f} ms, "
            f"chunks/s {m(chunks, target) / m(chunks, 'direct'):.3f}, "
            f"added time to first p99 {added(target, first):.2f} ms"
        )
    cpu = m("CPU s per 1,000 requests, router + nats-server", "echo")
    print(f"  CPU per 1,000 requests, NATS included: {cpu:.3f} s (must: 0.15, aim: 0.07)")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each saturation and latency measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000, help="of the memory measurement; 0 leaves it out")
    options = parser.parse_args()
    async with system() as bench:
        table = Table()
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            await saturation(bench, table, options.seconds)
            await latency(bench, table, options.seconds)
            await streaming(bench, table)
        table.show()
        summary(table)
        if options.requests:
            await memory(bench, options.requests)


if __name__ == "__main__":
    uvloop.run(main())
