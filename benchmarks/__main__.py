"""`python -m benchmarks [--quick] [NAME...]`: every benchmark, with progress, and one table beside the targets.

Progress goes to stderr, the table to stdout. Results are shown, never asserted: machines are shared and noisy, and
only ratios within one run and CPU per request can be compared. `--json FILE` also keeps them for machines.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import engine_streams, hot_path, metrics_pipeline, peers, propagation, reaction
from benchmarks.report import Figure, figure, say, table

TITLES = {
    "requests/s, 64 connections": ("requests/s, 64 connections", "1/s", True),
    "latency ms at 200/s, p50": ("latency at 200/s, p50", "ms", False),
    "latency ms at 200/s, p99": ("latency at 200/s, p99", "ms", False),
    "streaming chunks/s, 64 streams": ("streaming chunks/s, 64 streams", "1/s", True),
    "64 paced streams: time to first ms, p50": ("64 paced streams: time to first, p50", "ms", False),
    "64 paced streams: time to first ms, p99": ("64 paced streams: time to first, p99", "ms", False),
}
"""Rows of the hot path's table for which a ratio to, or a difference from, the direct connection is shown."""


async def run_hot_path(*, quick: bool) -> list[Figure]:
    """The request path beside a direct connection: its own table goes to stderr, the figures that have targets here."""
    seconds, rounds, requests = (1.5, 1, 10_000) if quick else (5.0, 3, 100_000)
    result = hot_path.Table()
    with contextlib.redirect_stdout(sys.stderr):
        async with hot_path.system() as bench:
            for number in range(rounds):
                say(f"hot_path: round {number + 1} of {rounds}")
                await hot_path.saturation(bench, result, seconds)
                await hot_path.latency(bench, result, seconds)
                await hot_path.streaming(bench, result)
            result.show()
            hot_path.summary(result)
            await hot_path.memory(bench, requests)
    return hot_path_figures(result.cells)


def hot_path_figures(cells: dict[tuple[str, str], list[float]]) -> list[Figure]:
    """Each row against the direct connection, round by round, and CPU with its targets."""
    figures: list[Figure] = []
    for target in ("echo", "openai"):
        for row, (title, unit, ratio) in TITLES.items():
            mine, base = cells.get((row, target), []), cells.get((row, "direct"), [])
            if len(mine) != len(base) or not mine:
                continue
            pairs = list(zip(mine, base, strict=True))
            if ratio:
                figures += [
                    figure(f"{target}: {title}", mine, unit, higher=True),
                    figure(f"{target}: {title}, share of direct", [m / b for m, b in pairs], higher=True),
                ]
            else:
                figures.append(figure(f"{target}: added {title}", [m - b for m, b in pairs], unit))
        row = "CPU s per 1,000 requests, router + nats-server"
        if (row, target) in cells:
            must, aim = (0.15, 0.07) if target == "echo" else (None, None)
            figures.append(
                figure(f"{target}: CPU per 1,000 requests, with NATS", cells[row, target], "s", must=must, aim=aim)
            )
    return figures


async def run_metrics_pipeline(*, quick: bool) -> list[Figure]:
    """Facts through aggregation into ClickHouse."""
    facts, rounds = (160_000, 1) if quick else (800_000, 3)
    rates = []
    for number in range(rounds):
        say(f"metrics_pipeline: round {number + 1} of {rounds}, {facts:,} facts")
        with tempfile.TemporaryDirectory(prefix="cypria-bench-") as folder:
            found = await metrics_pipeline.measure(Path(folder), facts, 50, 20_000)
        rates.append(found["facts"] / found["cpu"])
    return [figure("facts into ClickHouse, per core and second", rates, "1/s", must=20_000, aim=40_000, higher=True)]


async def run_propagation(*, quick: bool) -> list[Figure]:
    """Changes until they are in force on every router."""
    return await propagation.measure(changes=30 if quick else 250)


async def run_reaction(*, quick: bool) -> list[Figure]:
    """A dead canary until it is out, and windows until their verdict."""
    return await reaction.measure(runs=2, alone=1, windows=10) if quick else await reaction.measure()


async def run_peers(*, quick: bool) -> list[Figure]:
    """Other gateways in the same run."""
    return await peers.measure(rounds=1, seconds=2.0) if quick else await peers.measure()


async def run_engine_streams(*, quick: bool) -> list[Figure]:
    """64 streams to vLLM beside its own server; nothing where it is not installed."""
    return await engine_streams.measure(rounds=2, each=2, sizes=("1M",)) if quick else await engine_streams.measure()


Runner = Callable[..., Coroutine[Any, Any, list[Figure]]]
OPTIONAL = {"peers", "engine_streams"}
"""Those that need environments of their own."""
BENCHMARKS: dict[str, Runner] = {
    "hot_path": run_hot_path,
    "peers": run_peers,
    "metrics_pipeline": run_metrics_pipeline,
    "propagation": run_propagation,
    "reaction": run_reaction,
    "engine_streams": run_engine_streams,
}


def machine() -> str:
    """What the figures were measured on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        kind = model or platform.machine()
        return f"{os.cpu_count()} cores ({kind}), Python {platform.python_version()}, load {load}"
    return platform.platform()


def run(names: list[str], *, quick: bool) -> dict[str, list[Figure]]:
    """Run benchmarks one after the other, each in a loop of its own; one that fails does not keep the others back."""
    results: dict[str, list[Figure]] = {}
    for index, name in enumerate(names):
        say(f"[{index + 1}/{len(names)}] {name} ...")
        began = time.monotonic()
        try:
            results[name] = uvloop.run(BENCHMARKS[name](quick=quick))
        except Exception as exc:
            say(f"{name} failed: {exc!r}")
            results[name] = []
        say(f"[{index + 1}/{len(names)}] {name}: {time.monotonic() - began:.0f} s")
    return results


def main() -> int:
    """1 when a benchmark could not be carried out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="a minute or two instead of a quarter of an hour; noisier")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    names = options.names or list(BENCHMARKS)
    where, when = machine(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    results = run(names, quick=options.quick)
    print(f"\n{when}, {where}{', quick' if options.quick else ''}\n")
    print(table([one for figures in results.values() for one in figures]))
    print("\n'to must' and 'to aim': how many times better (above 1) or worse (below 1) than the target.")
    if options.json:
        found = {name: [vars_of(one) for one in figures] for name, figures in results.items()}
        options.json.write_text(json.dumps({"when": when, "machine": where, "figures": found}, indent=1))
    return int(any(not figures and name not in OPTIONAL for name, figures in results.items()))


def vars_of(one: Figure) -> dict[str, object]:
    """A figure as JSON."""
    return {
        "name": one.name, "unit": one.unit, "median": one.median, "values": list(one.values), "must": one.must,
        "aim": one.aim, "verdict": one.verdict(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
