"""Windows as the metrics service would publish them, from simulated requests. Seeds are arguments."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.sketch import bin_index
from schemas.v1.common import Outcome, TestStatus
from schemas.v1.experiment import Experiment
from schemas.v1.windows import Bucket, Cell, Moments, UnitEvidence, Watermark, Window

TEST = "ab_test_0001"
START_S = 1_700_000_000


def experiment(**fields: Any) -> Experiment:
    """A running test of 24 h at 20 % unless told otherwise."""
    base: dict[str, Any] = {
        "test_id": TEST, "version": 3, "status": TestStatus.RUNNING, "model_a": "stable", "model_b": "canary",
        "share_bp": 2000, "salt": "s", "created_ms": START_S * 1000, "started_ms": START_S * 1000,
        "ends_ms": (START_S + 86_400) * 1000, "duration_minutes": 1440,
        "digests": {"a": "sha256:a", "b": "sha256:b"}, "config_hash": "sha256:c",
    }  # fmt: skip
    return Experiment.model_validate(base | fields)


def moments(values: list[int]) -> Moments:
    logs = [math.log(value) for value in values]
    bins: dict[int, int] = {}
    for value in values:
        bins[bin_index(value)] = bins.get(bin_index(value), 0) + 1
    return Moments(
        n=len(values), total=sum(values), squares=sum(v * v for v in values),
        ln=sum(round(1e6 * x) for x in logs), ln_squares=sum(round(1e6 * x * x) for x in logs), bins=bins,
    )


@dataclass
class Arm:
    """How one variant behaves: probabilities, and lognormal latency and cost (medians in ms and nano-dollars, sigma).

    ``odd`` is the probability that a good request ends with the outcome ``odd_outcome`` instead.
    """

    errors: float = 0.01
    client_errors: float = 0.0
    overdue: float = 0.0
    median_ms: float = 200.0
    sigma: float = 0.5
    odd: float = 0.0
    odd_outcome: Outcome = Outcome.EMPTY
    cost: int = 0


@dataclass
class Traffic:
    """Requests of one test, a tick at a time; with ``users`` > 0 they come from that many sticky users."""

    seed: int
    a: Arm = field(default_factory=Arm)
    b: Arm = field(default_factory=Arm)
    share_bp: int = 2000
    per_second: float = 50.0
    users: int = 0
    epoch_seconds: int = 3600
    test: str = TEST

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.seen: dict[str, set[tuple[int, int]]] = {"new": set(), "error": set()}
        self.seen_test: dict[str, set[int]] = {"new": set(), "error": set()}
        self.requests = {"a": 0, "b": 0}
        self.next_unit = 1 << 40

    def cells(self, second: int) -> list[Cell]:
        """Cells of one second since the test began."""
        found: dict[str, list[tuple[int, str, int]]] = {"a": [], "b": []}
        for _ in range(self.rng.poisson(self.per_second)):
            variant, unit = self._assign()
            arm = self.a if variant == "a" else self.b
            draw = self.rng.random()
            kind = "error" if draw < arm.errors else "client" if draw < arm.errors + arm.client_errors else "ok"
            latency = max(1, round(1000 * arm.median_ms * math.exp(arm.sigma * self.rng.standard_normal())))
            found[variant].append((unit, kind, latency))
            self.requests[variant] += 1
        return [self._cell(variant, second, rows) for variant, rows in found.items() if rows]

    def _assign(self) -> tuple[str, int]:
        if self.users:
            unit = int(self.rng.integers(self.users))
            bucket = (unit * 2654435761 + 12345) % 10_000
        else:
            self.next_unit += 1
            unit, bucket = self.next_unit, int(self.rng.integers(10_000))
        return ("b" if bucket < self.share_bp else "a"), unit

    def _cell(self, variant: str, second: int, rows: list[tuple[int, str, int]]) -> Cell:
        epoch = second // self.epoch_seconds
        arm = self.a if variant == "a" else self.b
        units = UnitEvidence()
        first: list[int] = []
        odd = 0
        buckets: dict[int, Bucket] = {}
        for unit, kind, latency in rows:
            if (epoch, unit) not in self.seen["new"]:
                self.seen["new"].add((epoch, unit))
                units.new += 1
                units.first_overdue += int(self.rng.random() < arm.overdue)
                if kind == "ok":
                    first.append(latency)
            if unit not in self.seen_test["new"]:
                self.seen_test["new"].add(unit)
                units.new_test += 1
            if kind == "error" and (epoch, unit) not in self.seen["error"]:
                self.seen["error"].add((epoch, unit))
                units.first_errors += 1
            if kind == "error" and unit not in self.seen_test["error"]:
                self.seen_test["error"].add(unit)
                units.first_errors_test += 1
            units.first_client_errors += kind == "client"
            if kind == "ok" and arm.odd and self.rng.random() < arm.odd:
                odd += 1
                if (epoch, unit) not in self.seen.setdefault(arm.odd_outcome, set()):
                    self.seen[arm.odd_outcome].add((epoch, unit))
                    units.first_outcomes[arm.odd_outcome] = units.first_outcomes.get(arm.odd_outcome, 0) + 1
            if kind == "client":
                continue
            bucket = buckets.setdefault((unit * 40503) % 128, Bucket())
            bucket.n += 1
            bucket.errors += kind == "error"
            if kind == "ok":
                bucket.latency_n += 1
                bucket.latency_ln += round(1e6 * math.log(latency))
        units.latency_bins = moments(first).bins
        units.ttft_bins = dict(units.latency_bins)
        if arm.cost:
            spread = np.exp(arm.sigma * self.rng.standard_normal(len(first)))
            units.cost_bins = moments([max(1, round(arm.cost * x)) for x in spread]).bins
        kinds = [kind for _, kind, _ in rows]
        outcomes = {
            Outcome.OK: kinds.count("ok") - odd, arm.odd_outcome: odd, Outcome.ERROR_BEFORE_FIRST_TOKEN: kinds.count("error"),
            Outcome.CLIENT_ERROR: kinds.count("client"),
        }
        good = [latency for _, kind, latency in rows if kind == "ok"]
        return Cell(
            test=self.test, variant=variant, share_bp=self.share_bp, epoch=epoch, digest=f"sha256:{variant}",
            admitted=len(rows), done=len(rows) - kinds.count("client"), overdue=units.first_overdue,
            outcomes={k: v for k, v in outcomes.items() if v}, latency=moments(good), ttft=moments(good), units=units,
            buckets=buckets,
        )


def window(cells: list[Cell], partition: int = 0) -> Window:
    return Window(partition=partition, writer="w", watermark=Watermark(), cells=cells)


def stream(traffic: Traffic, seconds: int, start: int = 0) -> Iterator[tuple[int, int, Window]]:
    """(sequence, broker ms, window): two partitions a second, the second one empty."""
    for second in range(start, start + seconds):
        at = (START_S + second) * 1000
        yield 2 * second + 1, at + 100, window(traffic.cells(second), 0)
        yield 2 * second + 2, at + 600, window([], 1)
