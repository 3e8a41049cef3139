"""One open cell: facts of a test x variant x share x digest x epoch, and their sums as integers.

Sums are made when the window closes, by column, which costs a fraction of adding fact by fact.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.sketch import LN_GAMMA, MAX_BIN
from schemas.v1.common import ERRORS, Outcome
from services.metrics.domain.records import Bucket, Cell, Fact, Moments, UnitEvidence

MICRO = 1_000_000
LIMIT = 10**15
"""Times and costs above this (31 years in microseconds) are taken for this: sums stay within 128 bits."""

REPLIED = frozenset(
    {
        Outcome.OK, Outcome.LENGTH, Outcome.EMPTY, Outcome.INVALID_JSON, Outcome.INVALID_TOOL_CALL,
        Outcome.REPETITION,
    }
)  # fmt: skip
"""Outcomes with a whole (or length-limited) reply: only their times say how fast a variant is."""

BUCKET_SHIFT = 57
"""The top 7 bits of a unit hash are its bucket of 128; the partition is in the lowest, so the two are independent."""

OPINIONS = ("thumbs_n", "thumbs_up", "conversion_n", "conversions", "score_n", "score_micro")
"""Fields of a bucket that come from feedback."""

CellKey = tuple[str, str, int, int, str]
"""test, variant, share_bp, epoch, digest."""


def logs(values: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(round(ln x * 10**6), log bin) of each value; a value below 1 counts as 1.

    The bins are those of `schemas.sketch.bin_index`.
    """
    ln = np.log(np.maximum(np.asarray(values, dtype=np.float64), 1.0))
    bins = np.minimum(np.ceil(ln / LN_GAMMA - 1e-12), MAX_BIN)
    return np.rint(ln * MICRO).astype(np.int64), np.maximum(bins, 0).astype(np.int64)


def _histogram(bins: NDArray[np.int64]) -> dict[int, int]:
    found, counts = np.unique(bins, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def bounded(values: list[int]) -> list[int]:
    """The values, none above LIMIT."""
    return values if not values or max(values) <= LIMIT else [min(value, LIMIT) for value in values]


def moments(values: list[int]) -> tuple[Moments, NDArray[np.int64]]:
    """Additive summary of values (integers >= 0) and ln x * 10**6 of each.

    ``ln_squares`` is the sum of round((ln x)**2 * 10**6).
    """
    if not values:
        return Moments(), np.empty(0, dtype=np.int64)
    values = bounded(values)
    ln, bins = logs(values)
    squared = np.rint(ln.astype(np.float64) ** 2 / MICRO).astype(np.int64)
    summary = Moments(
        n=len(values),
        total=sum(values),
        squares=sum(value * value for value in values),
        ln=int(ln.sum()),
        ln_squares=int(squared.sum()),
        bins=_histogram(bins),
    )
    return summary, ln


def log_bins(values: list[int]) -> dict[int, int]:
    """Histogram of values in log bins."""
    return _histogram(logs(values)[1]) if values else {}


class OpenCell:
    """Facts of one cell of the open window; `close` sums them."""

    __slots__ = (
        "admitted", "fallback", "feedback", "finals", "first", "hashes", "key", "opinions", "overdue", "overdue_done",
        "units",
    )  # fmt: skip

    def __init__(self, key: CellKey) -> None:
        self.key = key
        self.admitted = 0
        self.overdue = 0
        self.overdue_done = 0
        self.fallback = 0
        self.finals: list[Fact] = []
        self.hashes: list[int] = []
        self.first: list[Fact] = []
        self.units = UnitEvidence()
        self.feedback: dict[str, int] = {}
        self.opinions: dict[int, Bucket] = {}

    def close(self) -> Cell:
        """The cell as it is published."""
        test, variant, share_bp, epoch, digest = self.key
        cell = Cell(
            test=test, variant=variant, share_bp=share_bp, epoch=epoch, digest=digest, admitted=self.admitted,
            overdue=self.overdue, overdue_done=self.overdue_done, fallback=self.fallback, units=self.units,
            feedback=self.feedback,
        )  # fmt: skip
        if self.finals:
            self._sum(cell)
        if self.first:
            self._first_requests(cell.units)
        for index, heard in self.opinions.items():
            bucket = cell.buckets.setdefault(index, Bucket())
            for name in OPINIONS:
                setattr(bucket, name, getattr(heard, name))
        return cell

    def _sum(self, cell: Cell) -> None:
        finals = self.finals
        cell.outcomes = dict(Counter(fact.outcome for fact in finals))
        cell.done = len(finals) - cell.outcomes.get(Outcome.CLIENT_ERROR, 0)
        cell.strata = dict(Counter(fact.stratum for fact in finals))
        cell.prompt_tokens = sum(bounded([fact.prompt_tokens for fact in finals]))
        cell.completion_tokens = sum(bounded([fact.completion_tokens for fact in finals]))
        cell.cached_tokens = sum(bounded([fact.cached_tokens for fact in finals]))
        cell.gpu_us = sum(bounded([fact.gpu_us for fact in finals]))
        replies = [(f, h >> BUCKET_SHIFT) for f, h in zip(finals, self.hashes, strict=True) if f.outcome in REPLIED]
        timed = [(f.latency_us, b) for f, b in replies if f.latency_us is not None]
        started = [(f.ttft_us, b) for f, b in replies if f.ttft_us is not None]
        priced = [(f.cost_nano, b) for f, b in replies if f.cost_nano]
        cell.latency, latency_ln = moments([value for value, _ in timed])
        cell.ttft, ttft_ln = moments([value for value, _ in started])
        cell.itl, _ = moments([f.itl_us for f, _ in replies if f.itl_us is not None])
        # Money is money also for a request that failed half-way; only the guardrail's evidence wants whole replies.
        cell.cost, _ = moments([f.cost_nano for f in finals if f.cost_nano])
        cost_ln = logs(bounded([value for value, _ in priced]))[0]
        cell.buckets = buckets = self._buckets()
        for (_, index), ln in zip(timed, latency_ln.tolist(), strict=True):
            bucket = buckets[index]
            bucket.latency_n += 1
            bucket.latency_ln += ln
        for (_, index), ln in zip(started, ttft_ln.tolist(), strict=True):
            bucket = buckets[index]
            bucket.ttft_n += 1
            bucket.ttft_ln += ln
        for (_, index), ln in zip(priced, cost_ln.tolist(), strict=True):
            bucket = buckets[index]
            bucket.cost_n += 1
            bucket.cost_ln += ln

    def _buckets(self) -> dict[int, Bucket]:
        """Requests and errors by unit bucket."""
        buckets: dict[int, Bucket] = {}
        for fact, unit in zip(self.finals, self.hashes, strict=True):
            if fact.outcome is Outcome.CLIENT_ERROR:
                continue
            index = unit >> BUCKET_SHIFT
            bucket = buckets.get(index)
            if bucket is None:
                bucket = buckets[index] = Bucket()
            bucket.n += 1
            if fact.outcome in ERRORS:
                bucket.errors += 1
        return buckets

    def _first_requests(self, units: UnitEvidence) -> None:
        replies = [fact for fact in self.first if fact.outcome in REPLIED]
        units.latency_bins = log_bins([f.latency_us for f in replies if f.latency_us is not None])
        units.ttft_bins = log_bins([f.ttft_us for f in replies if f.ttft_us is not None])
        units.itl_bins = log_bins([f.itl_us for f in replies if f.itl_us is not None])
        units.cost_bins = log_bins([f.cost_nano for f in replies if f.cost_nano])
