"""Totals of a test since it began: what the API shows of each variant, and the sums a promotion rests on."""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas import feedback
from schemas.sketch import merge, quantile
from schemas.v1.common import ERRORS, Outcome
from schemas.v1.experiment import UNIT_BUCKETS, VariantSummary
from schemas.v1.windows import Cell, Moments

COUNTS = (
    "admitted", "done", "overdue", "overdue_done", "fallback", "prompt_tokens", "completion_tokens", "cached_tokens",
    "gpu_us",
)  # fmt: skip
QUANTITIES = ("latency", "ttft", "itl", "cost")
SUMS = (
    "n", "errors", "latency_n", "latency_ln", "ttft_n", "ttft_ln", "cost_n", "cost_ln", "thumbs_n", "thumbs_up",
    "conversion_n", "conversions", "score_n", "score_micro",
)  # fmt: skip
NANO = 1e9
MAX_BUCKET = 2**62
"""No sum gets here but by a fault; it then stands still instead of turning negative."""
MAX_DIGESTS = 16
"""Of one variant, that are counted apart; nobody changes weights so often but by a fault."""
_MS = 1000.0

Table = NDArray[np.int64]


class VariantTotals:
    """Sums of one variant; all integers, so that no order of addition matters."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.feedback: Counter[str] = Counter()
        self.digests: Counter[str] = Counter()
        self.moments = {name: Moments() for name in QUANTITIES}
        self.units = 0

    @property
    def errors(self) -> int:
        """Finished requests that count as the variant's errors."""
        return sum(self.outcomes[kind.value] for kind in ERRORS)

    @property
    def done(self) -> int:
        """Finished requests without the callers' own errors."""
        return self.counts["done"]

    def add(self, cell: Cell) -> None:
        """Add a cell."""
        for name in COUNTS:
            self.counts[name] += getattr(cell, name)
        for outcome, count in cell.outcomes.items():
            self.outcomes[outcome.value] += count
        self.feedback.update(cell.feedback)
        if cell.digest and cell.done and (cell.digest in self.digests or len(self.digests) < MAX_DIGESTS):
            self.digests[cell.digest] += cell.done
        self.units += cell.units.new_test
        for name, moments in self.moments.items():
            more: Moments = getattr(cell, name)
            moments.n += more.n
            moments.total += more.total
            moments.squares += more.squares
            moments.ln += more.ln
            moments.ln_squares += more.ln_squares
            merge(moments.bins, more.bins)

    def summary(self, seconds: float) -> VariantSummary:
        """The totals as the API shows them; ``seconds`` is how long the test has been observed."""
        counts, done, errors = self.counts, self.done, self.errors
        cancels, client = self.outcomes[Outcome.CLIENT_CANCEL.value], self.outcomes[Outcome.CLIENT_ERROR.value]
        good = done - errors - cancels
        latency, ttft, itl = self.moments["latency"], self.moments["ttft"], self.moments["itl"]
        return VariantSummary(
            request_count=done,
            error_rate=100 * errors / done if done else 0.0,
            avg_latency_ms=_mean_ms(latency),
            successful_requests=good,
            error_count=errors,
            client_errors=client,
            client_cancels=cancels,
            admitted=counts["admitted"],
            in_flight=max(0, counts["admitted"] - done - client),
            overdue=max(0, counts["overdue"] - counts["overdue_done"]),
            fallback_count=counts["fallback"],
            success_rate=100 * good / done if done else None,
            throughput_rps=done / seconds if seconds > 0 else 0.0,
            latency_p50_ms=_quantile_ms(latency, 0.5),
            latency_p95_ms=_quantile_ms(latency, 0.95),
            latency_p99_ms=_quantile_ms(latency, 0.99),
            avg_ttft_ms=_mean_ms(ttft),
            ttft_p50_ms=_quantile_ms(ttft, 0.5),
            ttft_p95_ms=_quantile_ms(ttft, 0.95),
            ttft_p99_ms=_quantile_ms(ttft, 0.99),
            avg_inter_token_ms=_mean_ms(itl),
            prompt_tokens=counts["prompt_tokens"],
            completion_tokens=counts["completion_tokens"],
            cost=self.moments["cost"].total / NANO,
            outcomes={name: count for name, count in sorted(self.outcomes.items()) if count},
            units=self.units,
            cached_tokens=counts["cached_tokens"],
            digests=dict(self.digests),
            **feedback.shown(self.feedback),
            **feedback.efficiency(
                done=done, cost_nano=self.moments["cost"].total, completion_tokens=counts["completion_tokens"],
                gpu_us=counts["gpu_us"],
            ),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        return {
            "counts": dict(self.counts),
            "outcomes": dict(self.outcomes),
            "feedback": dict(self.feedback),
            "digests": dict(self.digests),
            "units": self.units,
            "moments": {name: moments.model_dump(mode="json") for name, moments in self.moments.items()},
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "VariantTotals":
        """Restore a checkpoint."""
        totals = cls()
        totals.counts.update(state["counts"])
        totals.outcomes.update(state["outcomes"])
        totals.feedback.update(state["feedback"])
        totals.digests.update(state.get("digests", {}))
        totals.units = state["units"]
        totals.moments = {name: Moments.model_validate(value) for name, value in state["moments"].items()}
        return totals


class Totals:
    """Totals of all variants, and unit buckets by share: arrays (2 arms: a then b, 128 buckets) of each sum."""

    def __init__(self) -> None:
        self.variants: dict[str, VariantTotals] = {}
        self.buckets: dict[int, dict[str, Table]] = {}
        self.first_second: int | None = None
        self.last_second: int | None = None

    @property
    def seconds(self) -> float:
        """Whole seconds from the first to the last tick with data, both included; 0 without any."""
        if self.first_second is None or self.last_second is None:
            return 0.0
        return float(self.last_second - self.first_second + 1)

    def of(self, variant: str) -> VariantTotals:
        """Totals of a variant, empty when it had nothing."""
        return self.variants.get(variant) or VariantTotals()

    def mixed(self) -> list[tuple[str, int, str]]:
        """(variant, how many models, what that means) of every variant that more than one model has served."""
        found = []
        for name, totals in sorted(self.variants.items()):
            count = len(totals.digests)
            if count > 1:
                digests = ", ".join(sorted(totals.digests))
                text = (
                    f"variant {name} was served by {count} different models ({digests}): what was measured is none of "
                    "them alone; stop the test and start another"
                )
                found.append((name, count, text))
        return found

    def requests(self) -> int:
        """Finished requests of all variants."""
        return sum(totals.done for totals in self.variants.values())

    def requests_per_second(self) -> float:
        """Finished requests of all variants per second since the first one."""
        return self.requests() / self.seconds if self.seconds else 0.0

    def add(self, second: int, cells: tuple[Cell, ...]) -> None:
        """Add the cells of a tick."""
        if not cells:
            return
        if self.first_second is None:
            self.first_second = second
        self.last_second = second
        for cell in cells:
            totals = self.variants.get(cell.variant)
            if totals is None:
                totals = self.variants[cell.variant] = VariantTotals()
            totals.add(cell)
            if cell.buckets and cell.variant in {"a", "b"}:
                self._add_buckets(cell)

    def _add_buckets(self, cell: Cell) -> None:
        tables = self.buckets.get(cell.share_bp)
        if tables is None:
            tables = {name: np.zeros((2, UNIT_BUCKETS), dtype=np.int64) for name in SUMS}
            self.buckets[cell.share_bp] = tables
        arm = 0 if cell.variant == "a" else 1
        for index, bucket in cell.buckets.items():
            for name in SUMS:
                value = getattr(bucket, name)
                if value > 0:
                    table, at = tables[name], (arm, index % UNIT_BUCKETS)
                    table[at] = min(int(table[at]) + value, MAX_BUCKET)

    def stacked(self, counts: str, sums: str) -> tuple[Table, Table]:
        """(counts, sums) of all phases where both arms got traffic; shape (phases, 2, 128)."""
        shares = [share for share in sorted(self.buckets) if 0 < share < 10_000]
        empty = np.zeros((0, 2, UNIT_BUCKETS), dtype=np.int64)
        if not shares:
            return empty, empty
        return (
            np.stack([self.buckets[share][counts] for share in shares]),
            np.stack([self.buckets[share][sums] for share in shares]),
        )

    def summaries(self) -> dict[str, VariantSummary]:
        """What the API shows, by variant."""
        return {name: self.variants[name].summary(self.seconds) for name in sorted(self.variants)}

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        return {
            "variants": {name: totals.to_dict() for name, totals in self.variants.items()},
            "buckets": [[share, {n: t.tolist() for n, t in tables.items()}] for share, tables in self.buckets.items()],
            "seconds": [self.first_second, self.last_second],
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Totals":
        """Restore a checkpoint."""
        totals = cls()
        totals.variants = {name: VariantTotals.from_dict(value) for name, value in state["variants"].items()}
        totals.buckets = {
            int(share): {name: np.array(table, dtype=np.int64) for name, table in tables.items()}
            for share, tables in state["buckets"]
        }
        totals.first_second, totals.last_second = state["seconds"]
        return totals


def _mean_ms(moments: Moments) -> float | None:
    return moments.total / moments.n / _MS if moments.n else None


def _quantile_ms(moments: Moments, q: float) -> float | None:
    value = quantile(moments.bins, q)
    return None if value is None else value / _MS
