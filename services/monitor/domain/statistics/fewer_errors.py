"""Errors as what a canary is to improve: evidence that its units fail less often than ``ratio`` times control's.

Core A reversed (``rate``) on first-error units of the whole test. It moves on the errors of either variant, so a canary
without any is shown by control's alone. Its state is counts by share: which ``ratio`` is asked may be chosen at any
time, and the confidence sequence inverts the same e-process.

Why control's errors wait: a canary's failures may take longer than control's (it hangs, control refuses at once). An
error of control counts when it is `LAG_SECONDS` old, or when nothing of B is in flight; one of B counts at once, and a
request of B that is overdue counts as failed. In the order of arrival that is at most what the e-process of all
outcomes would be. Where the ratio is below 1 and holds for each unit, first errors are as good as all of them: the
units that have failed already are more often A's, so those that are left make B's share of what follows larger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import lru_cache

from services.monitor.domain.statistics.histogram import RateRow, State, check_counts, check_share
from services.monitor.domain.statistics.intervals import Interval, rate_ratio_interval
from services.monitor.domain.statistics.non_inferiority import LAG_SECONDS, Arrivals
from services.monitor.domain.statistics.rate import RateEProcess


class FewerErrors:
    """First-error units of both variants by share, from which evidence is computed when asked."""

    def __init__(self) -> None:
        self._counted: dict[float, list[int]] = {}
        self._waiting: deque[tuple[int, float, int]] = deque()
        self._sums = [0, 0, 0]
        self._share = 0.0

    def update(self, tick: int, rows: Iterable[RateRow], more: Arrivals) -> None:
        """Take in one tick: (pi, first-error units of A, of B) for each phase, and all that it brought of B.

        Args:
            tick: whole seconds of broker time since the test began; never going back.
            rows: phases in any order; shares of 0 and 1 say nothing.
            more: of B, at whatever share: only what was admitted, finished and is overdue matters here.

        Raises:
            ValueError: a share is outside [0, 1] or a count is negative.
        """
        for pi, of_a, of_b in sorted(rows):
            check_share(pi)
            check_counts((of_a, of_b))
            if 0.0 < pi < 1.0:
                self._share = pi
                self._of(pi)[1] += of_b
                if of_a:
                    self._waiting.append((tick, pi, of_a))
        added = (more.admitted, more.finished, more.overdue)
        self._sums = [before + now for before, now in zip(self._sums, added, strict=True)]
        settled = self._sums[0] <= self._sums[1]
        while self._waiting and (settled or self._waiting[0][0] <= tick - LAG_SECONDS):
            _, pi, of_a = self._waiting.popleft()
            self._of(pi)[0] += of_a

    def _of(self, pi: float) -> list[int]:
        return self._counted.setdefault(pi, [0, 0])

    @property
    def events(self) -> dict[float, tuple[int, int]]:
        """(units of A, of B) that count now, by share; requests of B that are overdue among them."""
        found = {pi: (a, b) for pi, (a, b) in sorted(self._counted.items())}
        overdue = max(0, self._sums[2])
        if overdue and self._share:
            a, b = found.get(self._share, (0, 0))
            found[self._share] = (a, b + overdue)
        return found

    @property
    def totals(self) -> tuple[int, int]:
        """Units of A and of B that count now."""
        found = self.events.values()
        return sum(a for a, _ in found), sum(b for _, b in found)

    def process(self, ratio: float) -> RateEProcess:
        """The e-process against "B's units fail at least ``ratio`` times as often as A's", at what counts now.

        Raises:
            ValueError: the ratio is not positive and finite.
        """
        process = RateEProcess.non_inferiority(ratio)
        process.update(0, [(pi, a, b) for pi, (a, b) in self.events.items()])
        return process

    def ratio(self) -> float | None:
        """B's rate as a multiple of A's, with shares as strata (Mantel & Haenszel); None while A has no errors."""
        of_a = sum(pi * a for pi, (a, _) in self.events.items())
        of_b = sum((1.0 - pi) * b for pi, (_, b) in self.events.items())
        return of_b / of_a if of_a > 0.0 else None

    def interval(self, alpha: float) -> Interval:
        """The confidence sequence of that multiple; a ratio above its upper end is rejected at half of alpha."""
        return _interval(tuple(self.events.items()), alpha)

    def to_dict(self) -> State:
        """Return the checkpoint."""
        return {
            "counted": [[pi, *counts] for pi, counts in self._counted.items()],
            "waiting": [list(entry) for entry in self._waiting],
            "sums": list(self._sums),
            "share": self._share,
        }

    @classmethod
    def from_dict(cls, state: State) -> FewerErrors:
        """Restore what goes on just where the checkpoint was taken."""
        found = cls()
        found._counted = {pi: [a, b] for pi, a, b in state["counted"]}
        found._waiting = deque((tick, pi, of_a) for tick, pi, of_a in state["waiting"])
        found._sums, found._share = list(state["sums"]), state["share"]
        return found


@lru_cache(maxsize=64)
def _interval(events: tuple[tuple[float, tuple[int, int]], ...], alpha: float) -> Interval:
    """Kept, because a test is looked at every second and errors are rarer than that."""
    counts: Mapping[float, tuple[int, int]] = dict(events)
    return rate_ratio_interval(counts, alpha)
