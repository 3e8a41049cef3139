"""One test's evidence read again from its start: the same evaluator, the same order, so the same verdict. Pure."""

from collections.abc import Iterable

from schemas.v1.common import TestStatus
from schemas.v1.experiment import Experiment, VerdictRecord
from schemas.v1.record import EvidenceTick, TestChange
from schemas.v1.windows import Window
from services.monitor.domain import verdict
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick, Ticker
from services.monitor.domain.series import SeriesBuilder

GRACE_MS = 5000
"""Windows that came this long after a test's end belong to it: the last facts are a little late."""

_ENDINGS = frozenset({"completed", "rolled_back", "failed"})


Schedule = list[tuple[int, int, TestStatus]]


def schedule(changes: Iterable[TestChange]) -> Schedule:
    """(Unix ms, configured share, status) of every change of a test but the one that ended it, in order.

    A ramp's step, a step down, a retry, an approval, a pause: each says how the test stood after it.
    """
    stood = [
        (change.at_ms, change.share_bp, change.status or TestStatus.RUNNING)
        for change in changes
        if change.share_bp is not None and change.kind not in _ENDINGS
    ]
    return sorted(stood, key=lambda change: change[0])


class Span:
    """Where a test's evidence ends: at the sequence ``until``, else a little after the test did, else nowhere yet."""

    def __init__(self, until: int | None, ended_ms: int | None) -> None:
        self.until = until
        self._ended_ms = ended_ms

    def holds(self, sequence: int, time_ms: int) -> bool:
        """Whether a window is within it."""
        if self.until is not None:
            return sequence <= self.until
        return self._ended_ms is None or time_ms <= self._ended_ms + GRACE_MS


class Reading:
    """An evaluation from the start of a test up to where its verdict was taken.

    ``failed`` counts ticks that could not be evaluated at all, as they could not when they came.
    """

    def __init__(self, experiment: Experiment, after: int, span: Span, stood: Schedule | None = None) -> None:
        self.evaluator = TestEvaluator(experiment)
        self.ticker = Ticker(experiment.test_id, after)
        self.span = span
        self.closed = False
        self.failed = 0
        self._stood = list(stood or ())
        self._series = SeriesBuilder()
        self._recent = SeriesBuilder(recent=True)

    def take(self, sequence: int, time_ms: int, window: Window) -> None:
        """Take in the next window; what lies beyond the end closes the reading."""
        if self.closed:
            return
        if not self.span.holds(sequence, time_ms):
            self.close()
            return
        tick = self.ticker.add(sequence, time_ms, window)
        if tick is not None:
            self._evaluate(tick, time_ms)
        if sequence == self.span.until:
            self.close()

    def follow(self, span: Span, stood: Schedule) -> None:
        """Go on with what is known of the test by now: its end, its split and its status."""
        self.span = span
        self._stood = list(stood)

    def close(self) -> None:
        """Nothing more comes: judge the tick that is still open, as the verdict did."""
        if not self.closed:
            self.closed = True
            tick = self.ticker.open_tick()
            if tick is not None:
                self._evaluate(tick, 1000 * (tick.second + 1))

    def verdict(self) -> VerdictRecord:
        """What the evidence read so far says."""
        return verdict.decide(self.evaluator)

    def series(self) -> SeriesBuilder:
        """The test over time."""
        return self._series

    def recent(self) -> SeriesBuilder:
        """Its last ten minutes."""
        return self._recent

    def _evaluate(self, tick: Tick, at_ms: int) -> None:
        self._follow_test(at_ms)
        try:
            self.evaluator.tick(tick)
        except Exception:  # counted; when it came, the monitor went on with the next tick too
            self.failed += 1
            return
        self._series.add(self.evaluator, tick)
        self._recent.add(self.evaluator, tick)

    def _follow_test(self, at_ms: int) -> None:
        """The test as it stood when a tick was closed: a canary that gets nothing by order is not without data, and
        what was resumed is tried anew.
        """
        experiment = self.evaluator.experiment
        share, status = experiment.share_bp, experiment.status
        while self._stood and self._stood[0][0] <= at_ms:
            _, share, status = self._stood.pop(0)
        if (share, status) != (experiment.share_bp, experiment.status):
            self.evaluator.experiment = experiment.model_copy(update={"share_bp": share, "status": status})


class Pager:
    """Ticks of a test's evidence, at most ``limit`` of them and about ``room`` bytes of JSON."""

    def __init__(self, test_id: str, after: int, span: Span, limit: int, room: int) -> None:
        self._ticker = Ticker(test_id, after)
        self._span = span
        self._limit = limit
        self._room = room
        self.ticks: list[EvidenceTick] = []
        self.last = after
        self.complete = False

    @property
    def full(self) -> bool:
        """Whether this page takes no more."""
        return self.complete or len(self.ticks) >= self._limit or self._room <= 0

    def take(self, sequence: int, time_ms: int, window: Window) -> None:
        """Take in the next window."""
        if self.full:
            return
        if not self._span.holds(sequence, time_ms):
            self.close()
            return
        self._add(self._ticker.add(sequence, time_ms, window))
        if sequence == self._span.until and not self.full:
            self.close()

    def close(self) -> None:
        """The evidence ends here: the tick that is still open is its last."""
        self._add(self._ticker.open_tick())
        self.complete = True

    def _add(self, tick: Tick | None) -> None:
        if tick is None:
            return
        stored = EvidenceTick(second=tick.second, sequence=tick.sequence, cells=list(tick.cells))
        self._room -= len(stored.model_dump_json(exclude_defaults=True))
        self.ticks.append(stored)
        self.last = tick.sequence
