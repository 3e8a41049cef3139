"""Print the tables of ``docs/statistics.md``: ``python -m benchmarks.statistics [--quick] [--only NAME]``."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import numpy as np

from benchmarks.statistics.errors import Course, fewer_errors, fewer_errors_sticky
from benchmarks.statistics.promotion import errors_shown, promotions, rarely_slow
from benchmarks.statistics.rollback import Day, false_rollbacks, latency_detection, rate_detection
from benchmarks.statistics.sticky import first_errors

Job = Callable[[], np.ndarray]

CHANGES: dict[str, tuple[Callable[..., np.ndarray], dict[str, float]]] = {
    "errors 1 -> 5 %": (rate_detection, {"p_b": 0.05}),
    "errors 1 -> 15 %": (rate_detection, {"p_b": 0.15}),
    "errors 1 -> 100 %": (rate_detection, {"p_b": 1.0}),
    "latency x 1.2": (latency_detection, {"slow": 1.2, "tail": 0.0}),
    "latency x 2": (latency_detection, {"slow": 2.0, "tail": 0.0}),
    "tail only (5 % x 10)": (latency_detection, {"slow": 1.0, "tail": 0.05}),
    "errors 1 -> 15 % after 12 h": (rate_detection, {"p_b": 0.15, "good_hours": 12.0}),
    "errors 1 -> 15 % after 12.5 h": (rate_detection, {"p_b": 0.15, "good_hours": 12.5}),
    "errors 1 -> 5 %, rho0 1.5": (rate_detection, {"p_b": 0.05, "rho0": 1.5}),
    "errors 1 -> 15 %, rho0 1.5": (rate_detection, {"p_b": 0.15, "rho0": 1.5}),
}
PAGE = {  # (90/10, 99/1): median and 95th percentile of the prototype, without epochs
    "errors 1 -> 5 %": ((2240, 5180), (20_910, 48_680)),
    "errors 1 -> 15 %": ((390, 970), (3210, 7790)),
    "errors 1 -> 100 %": ((40, 90), (280, 820)),
    "latency x 1.2": ((1330, 2550), (11_460, 21_800)),
    "latency x 2": ((280, 380), (1520, 2890)),
    "tail only (5 % x 10)": ((2470, 4370), (13_420, 31_560)),
    "errors 1 -> 15 % after 12 h": ((825, 1450), (5475, 10_450)),
    "errors 1 -> 5 %, rho0 1.5": ((3830, 9270), None),
    "errors 1 -> 15 %, rho0 1.5": ((530, 1140), None),
}
SPLITS = {"50/50": 0.5, "90/10": 0.1, "99/1": 0.01}
DAYS = {
    **{f"identical, {split}": Day(pi=pi) for split, pi in SPLITS.items()},
    **{f"rare errors (0.1 %), heavy tails, {split}": Day(pi=pi, errors=0.001, heavy=True)
       for split, pi in SPLITS.items()},
    **{f"drift, shared outages, {split}": Day(pi=pi, drift=True, outages=True) for split, pi in SPLITS.items()},
    "drift, ramp 1 to 50 %, shared outages": Day(ramp=True, drift=True, outages=True),
}
STICKY = {
    "even users, 90/10": {},
    **{f"users of very uneven activity, {split}": {"uneven": True, "pi": pi} for split, pi in SPLITS.items()},
    **{f"uneven users, streaks of errors, {split}": {"uneven": True, "correlated": True, "pi": pi}
       for split, pi in SPLITS.items()},
    "streaks, every error counted (the wrong test), 90/10": {"correlated": True, "requests_as_events": True},
}
BOUNDARIES = {
    "errors at 1.5 x": {"ratio": 1.5},
    "latency at x 1.2": {"slow": 1.2},
    "improvement at 5 %": {"gain": 0.05},
}

ERRORS = {  # control's and canary's true error rates
    "none, none": (0.0, 0.0),
    "0.01 %, 0.01 %": (0.0001, 0.0001),
    "0.05 %, 0.05 %": (0.0005, 0.0005),
    "0.2 %, 0.2 %": (0.002, 0.002),
    "1 %, 1 %": (0.01, 0.01),
    "1 %, none": (0.01, 0.0),
}
ERROR_BOUNDARIES = {
    "none, 0.1 %": (0.0, 0.001),
    "1 %, 1.5 %": (0.01, 0.015),
    "0.0667 %, 0.1 %": (0.001 / 1.5, 0.001),
}
FEWER = {  # errors as the primary metric: control's error rate, canary's as a multiple
    "1 %, none": (0.01, 0.0),
    "1 %, half": (0.01, 0.5),
    "1 %, three quarters": (0.01, 0.75),
    "5 %, none": (0.05, 0.0),
    "5 %, half": (0.05, 0.5),
    "5 %, three quarters": (0.05, 0.75),
}
COURSES = {
    "50/50": Course(), "90/10": Course(pi=0.1), "50/50, drift and outages": Course(drift=True),
    "ramp, drift and outages": Course(ramp=True, drift=True),
}
NOT_FEWER = {
    f"{p_a:.0%}, {name}": {"p_a": p_a, "course": course} for p_a in (0.01, 0.05) for name, course in COURSES.items()
}
NOT_FEWER_STICKY = {
    "1 %, 50/50": {"p_a": 0.01},
    "5 %, 90/10": {"p_a": 0.05, "pi": 0.1},
    "streaks, 50/50": {"p_a": 0.02, "streaks": True},
    "streaks, 90/10": {"p_a": 0.02, "streaks": True, "pi": 0.1},
}
RARELY_SLOW = {  # share of B's requests, and how many times slower they are
    "20 % x 3": (0.2, 3.0),
    "10 % x 10": (0.1, 10.0),
    "5 % x 10": (0.05, 10.0),
    "2 % x 10": (0.02, 10.0),
    "5 % x 100": (0.05, 100.0),
    "1 % x 100": (0.01, 100.0),
}


def seed_of(name: str, part: int = 0) -> int:
    """A fixed seed for each scenario and part of it."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**31 + part


def jobs(reps: int, day_reps: int, parts: int) -> dict[str, tuple[str, list[Job]]]:
    """Every scenario: name -> (table, parts whose results are joined)."""
    found: dict[str, tuple[str, list[Job]]] = {}
    for change, (function, given) in CHANGES.items():
        for pi in (0.1, 0.01):
            if pi == 0.01 and "rho0" in change:
                continue
            for epochs in (True, False):
                name = f"{change} | {pi} | {'epochs' if epochs else 'one'}"
                found[name] = ("detection", [partial(function, seed_of(name), reps, pi, epochs=epochs, **given)])
    for name, day in DAYS.items():
        size = max(1, day_reps // parts)
        for kind in ("rate", "latency"):
            found[f"{name} | {kind}"] = ("false", [
                partial(false_rollbacks, seed_of(name + kind, part), size, day, kind) for part in range(parts)
            ])
    for name, given in STICKY.items():
        found[f"sticky, {name}"] = ("sticky false", [
            partial(first_errors, seed_of(name), day_reps, ticks=17_280, tick_seconds=5, **given),
        ])
    for epochs in (True, False):
        name = f"sticky, errors 1 -> 15 % after 12 h | {'epochs' if epochs else 'one'}"
        found[name] = ("sticky detection", [partial(first_errors, seed_of(name), max(20, reps // 20), p_b=0.15,
                                                    epochs=epochs, good_hours=12.0, guardrails=1)])
    for pi in (0.5, 0.1):
        found[f"promotion | {pi}"] = ("promotion", [partial(promotions, seed_of("promotion"), reps, pi=pi)])
    for name, given in BOUNDARIES.items():
        found[f"promotion wrong, {name}"] = ("wrong promotion", [
            partial(promotions, seed_of(name), reps, pi=0.5, horizon=200_000, **given)])
    for name, (p_a, p_b) in ERRORS.items():
        for pi in (0.5, 0.1):
            found[f"errors shown, {name} | {pi}"] = ("errors shown", [
                partial(errors_shown, seed_of(name), reps, pi=pi, p_a=p_a, p_b=p_b)])
    for name, (p_a, p_b) in ERROR_BOUNDARIES.items():
        found[f"errors wrongly shown, {name}"] = ("errors wrongly shown", [
            partial(errors_shown, seed_of(name), 2 * reps, p_a=p_a, p_b=p_b, horizon=200_000)])
    for name, (p_a, ratio) in FEWER.items():
        for pi in (0.5, 0.1):
            found[f"fewer errors, {name} | {pi}"] = ("fewer errors", [
                partial(fewer_errors, seed_of(name), reps, p_a=p_a, ratio=ratio, course=Course(pi))])
    for name, given in NOT_FEWER.items():
        found[f"fewer errors wrongly shown, {name}"] = ("fewer errors wrongly", [
            partial(fewer_errors, seed_of(name), reps, ratio=0.95, horizon=200_000, **given)])
    for name, given in NOT_FEWER_STICKY.items():
        found[f"fewer errors wrongly shown, users, {name}"] = ("fewer errors wrongly", [
            partial(fewer_errors_sticky, seed_of(name, part), max(1, reps // parts), ratio=0.95, **given)
            for part in range(parts)])
    for name, (share, factor) in RARELY_SLOW.items():
        for split in ("50/50", "90/10"):
            found[f"rarely slow, {name}, {split}"] = ("rarely slow", [
                partial(rarely_slow, seed_of(name), reps, share=share, factor=factor, pi=SPLITS[split])])
    return found


def describe(table: str, name: str, result: np.ndarray) -> str:
    """One line of a table."""
    if table == "false":
        hit = int((result > 0).sum())
        return f"{name}: {hit}/{len(result)} with a false rollback by 3 guardrails"
    if table in {"sticky false", "wrong promotion", "errors wrongly shown", "fewer errors wrongly", "rarely slow"}:
        return f"{name}: {int(np.isfinite(result).sum())}/{len(result)}"
    in_time = result[np.isfinite(result)]
    line = f"{name}: median {np.median(result):,.0f} (95th {np.percentile(result, 95, method='higher'):,.0f})"
    line += f", found {len(in_time)}/{len(result)}"
    change, *where = name.split(" | ")
    page = PAGE.get(change)
    if page and table == "detection":
        there = page[0 if where[0] == "0.1" else 1]
        if there:
            line += f"; page {there[0]:,} ({there[1]:,}), ratio {np.median(result) / there[0]:.2f}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics")
    parser.add_argument("--quick", action="store_true", help="a tenth of the replications")
    parser.add_argument("--only", default="", help="scenarios whose name or table contains this")
    parser.add_argument("--reps", type=int, default=2000, help="replications of a detection")
    parser.add_argument("--day-reps", type=int, default=400, help="replications of a day of equal arms")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    cut = 10 if args.quick else 1
    chosen = {
        name: job for name, job in jobs(args.reps // cut, args.day_reps // cut, 1 if args.quick else 4).items()
        if args.only in name or args.only == job[0]
    }
    gathered: dict[str, list[np.ndarray]] = {}
    start = time.monotonic()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(part): name for name, (_, parts) in chosen.items() for part in parts}
        for done in as_completed(running):
            name = running[done]
            table, parts = chosen[name]
            gathered.setdefault(name, []).append(done.result())
            if len(gathered[name]) == len(parts):
                print(f"[{table}] {describe(table, name, np.concatenate(gathered[name]))}", flush=True)
    print(f"{time.monotonic() - start:.0f} s")
