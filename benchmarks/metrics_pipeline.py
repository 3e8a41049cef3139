"""Facts through aggregation into ClickHouse, per core: `python -m benchmarks.metrics_pipeline [--facts N] [--batch N]`.

A real nats-server holds the facts of all partitions; then one metrics process (chDB) takes them into windows and
ClickHouse. Its CPU seconds (from /proc) until ClickHouse holds every fact give facts per core; the idle process's own
CPU is shown apart. nats-server's CPU is shown too, and is not counted: it is not part of this service.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nats
import yaml

from schemas import subjects
from schemas.v1.query import TotalsQuery, TotalsReply
from services._runtime.server import die_with_parent
from tests.harness import NatsServer, environment

TEST = "ab_test_1704067200"
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system CPU of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def batches(partition: int, count: int, size: int, units: int) -> list[bytes]:
    """Batches as routers send them; every fact has all its fields."""
    rng = random.Random(partition)
    now = int(time.time() * 1000)

    def fact() -> dict[str, Any]:
        return {
            "test": TEST, "variant": rng.choice("aaab"), "share_bp": 2500,
            "unit": f"{rng.randrange(units) * 0x9E37_79B9_7F4A_7C15 % 2**61 * 8 + partition:016x}",
            "sticky": rng.random() < 0.5, "kind": "final", "outcome": "ok" if rng.random() < 0.98 else "timeout",
            "was_overdue": False, "fallback": False,
            "latency_us": int(rng.lognormvariate(13, 0.5)), "ttft_us": int(rng.lognormvariate(11, 0.5)),
            "itl_us": int(rng.lognormvariate(9, 0.5)), "prompt_tokens": rng.randrange(2000),
            "completion_tokens": rng.randrange(500), "cached_tokens": 0, "cost_nano": int(rng.lognormvariate(13, 0.5)),
            "gpu_us": 0, "digest": "sha256:" + "ab" * 32, "stratum": 37,
        }  # fmt: skip

    clock = {TEST: {"started_ms": now, "epoch_seconds": 3600}}
    admitted = [{"test": TEST, "variant": "a", "share_bp": 2500, "count": size}]
    found = []
    for n in range(1, count + 1):
        facts = [fact() for _ in range(size)]
        batch = {"router_epoch": "r1-1", "partition": partition, "n": n, "tests": clock, "admitted": admitted}
        found.append(json.dumps({**batch, "facts": facts}).encode())
    return found


async def publish(server: NatsServer, per_partition: int, size: int, units: int) -> None:
    """Fill METRICS."""
    nc = await server.connect("router")
    js = nc.jetstream(publish_async_max_pending=512)
    for partition in range(subjects.PARTITIONS):
        for data in batches(partition, per_partition, size, units):
            await js.publish_async(subjects.metric(partition), data)
    await js.publish_async_completed()
    await nc.close()


async def finished(nc: Any, want: int) -> bool:
    """Whether ClickHouse holds every fact."""
    question = TotalsQuery(tests=[TEST]).model_dump_json().encode()
    try:
        reply = await nc.request(subjects.query("totals"), question, timeout=5)
    except (nats.errors.Error, TimeoutError):
        return False
    if reply.headers and "Cypria-Error" in reply.headers:
        return False
    variants = TotalsReply.model_validate_json(reply.data).tests.get(TEST, {})
    return sum(v.request_count for v in variants.values()) >= want


def start(config: Path) -> subprocess.Popen[bytes]:
    """The metrics process; it dies with this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "services.metrics", "--config", str(config)],
        env=environment(),
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),  # noqa: PLW1509
    )


async def measure(folder: Path, facts: int, size: int, units: int) -> dict[str, float]:
    """One run."""
    server = NatsServer(folder / "nats")
    server.start()
    process: subprocess.Popen[bytes] | None = None
    try:
        await server.provision()
        per_partition = facts // subjects.PARTITIONS // size
        total = per_partition * subjects.PARTITIONS * size
        await publish(server, per_partition, size, units)
        config = folder / "metrics.yaml"
        config.write_text(yaml.safe_dump({
            "nats": {"servers": [server.url], "user": "metrics", "password": server.embedded.passwords["metrics"]},
            "data_dir": str(folder / "data"), "logging": {"level": "WARNING"},
        }))  # fmt: skip
        assert server.process is not None
        nats_before = cpu_seconds(server.process.pid)
        began = time.monotonic()
        process = start(config)
        nc = await server.connect("router")
        while not await finished(nc, total):
            if process.poll() is not None:
                raise SystemExit("the metrics process ended")
            await asyncio.sleep(0.1)
        wall, cpu = time.monotonic() - began, cpu_seconds(process.pid)
        nats_cpu = cpu_seconds(server.process.pid) - nats_before
        idle_before = cpu_seconds(process.pid)
        await asyncio.sleep(10)
        idle = (cpu_seconds(process.pid) - idle_before) / 10
        await nc.close()
        return {"facts": total, "wall": wall, "cpu": cpu, "nats": nats_cpu, "idle": idle}
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(15)
        server.kill()


def main() -> None:
    """Print the figures of each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=800_000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--units", type=int, default=20_000, help="sticky units of each partition")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="cypria-bench-") as folder:
            found = asyncio.run(measure(Path(folder), options.facts, options.batch, options.units))
        per_core = found["facts"] / found["cpu"]
        verdict = "aim met" if per_core >= 40_000 else "target met" if per_core >= 20_000 else "BELOW TARGET"
        print(
            f"round {number + 1}: {found['facts']:,.0f} facts in batches of {options.batch}: CPU {found['cpu']:.2f} s "
            f"with start-up, wall {found['wall']:.2f} s, nats-server {found['nats']:.2f} s -> {per_core:,.0f} facts a "
            f"core and second ({verdict}: must 20,000, aim 40,000); idle {100 * found['idle']:.1f} % of a core"
        )


if __name__ == "__main__":
    main()
