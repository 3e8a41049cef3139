"""Windows of all partitions, gathered for one test into ticks and phases.

A tick is all WINDOWS messages whose broker time has the same whole second, in sequence order. It closes at the
first message of a later second; what comes later, or carries an earlier second, counts in the tick that is open.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from schemas.feedback import UNITS_DOWN
from schemas.sketch import merge
from schemas.v1.common import ERRORS, Outcome
from schemas.v1.windows import Cell, Window
from services.monitor.domain.bounds import within
from services.monitor.domain.statistics import Arrivals

FULL_SHARE = 10_000


@dataclass(slots=True)
class ArmEvidence:
    """What one arm brought in one phase of one tick.

    ``new`` to ``first_errors_test`` and ``first_outcomes`` count units (`schemas.v1.windows.UnitEvidence`); ``bins``
    are histograms of each unit's first request of the epoch, by quantity: microseconds, or nano-dollars of ``cost``.
    """

    done: int = 0
    errors: int = 0
    new: int = 0
    first_errors: int = 0
    first_client_errors: int = 0
    first_overdue: int = 0
    new_test: int = 0
    first_errors_test: int = 0
    first_thumbs_down: int = 0
    first_outcomes: dict[Outcome, int] = field(default_factory=dict)
    bins: dict[str, dict[int, int]] = field(default_factory=lambda: {"latency": {}, "ttft": {}, "itl": {}, "cost": {}})

    def add(self, cell: Cell) -> None:
        """Add a cell of this arm and phase."""
        units = cell.units
        self.done += cell.done
        self.errors += errors_of(cell)
        self.new += units.new
        self.first_errors += units.first_errors
        self.first_client_errors += units.first_client_errors
        self.first_overdue += units.first_overdue
        self.new_test += units.new_test
        self.first_errors_test += units.first_errors_test
        self.first_thumbs_down += cell.feedback.get(UNITS_DOWN, 0)
        for outcome, count in units.first_outcomes.items():
            self.first_outcomes[outcome] = self.first_outcomes.get(outcome, 0) + count
        merge(self.bins["latency"], units.latency_bins)
        merge(self.bins["ttft"], units.ttft_bins)
        merge(self.bins["itl"], units.itl_bins)
        merge(self.bins["cost"], units.cost_bins)


@dataclass(slots=True)
class Phase:
    """A stretch of constant share (``pi``, as a fraction) within one unit epoch, in one tick."""

    epoch: int
    pi: float
    a: ArmEvidence = field(default_factory=ArmEvidence)
    b: ArmEvidence = field(default_factory=ArmEvidence)


@dataclass(frozen=True, slots=True)
class Tick:
    """One closed tick of one test: its broker second (Unix), the last WINDOWS sequence in it, and its cells."""

    second: int
    sequence: int
    cells: tuple[Cell, ...] = ()

    def phases(self) -> list[Phase]:
        """Evidence of arms a and b by epoch and share, in that order."""
        found: dict[tuple[int, int], Phase] = {}
        for cell in self.cells:
            if cell.variant not in {"a", "b"}:
                continue
            key = (cell.epoch, cell.share_bp)
            phase = found.get(key)
            if phase is None:
                phase = found[key] = Phase(cell.epoch, cell.share_bp / FULL_SHARE)
            (phase.a if cell.variant == "a" else phase.b).add(cell)
        return [found[key] for key in sorted(found)]


def errors_of(cell: Cell) -> int:
    """Requests of a cell that count as the variant's errors."""
    return sum(count for outcome, count in cell.outcomes.items() if outcome in ERRORS)


def arrivals(cells: Iterable[Cell]) -> Arrivals:
    """What the cells of a tick brought of B, at whatever share."""
    own = [cell for cell in cells if cell.variant == "b"]
    wrong = sum(cell.outcomes.get(Outcome.CLIENT_ERROR, 0) for cell in own)
    return Arrivals(
        units=sum(cell.units.new_test for cell in own),
        failed=sum(cell.units.first_errors_test for cell in own),
        admitted=sum(cell.admitted for cell in own),
        finished=sum(cell.done for cell in own) + wrong,
        void=sum(cell.outcomes.get(Outcome.CLIENT_CANCEL, 0) for cell in own) + wrong,
        overdue=sum(cell.overdue - cell.overdue_done for cell in own),
    )


class Ticker:
    """Gathers the windows of one test into ticks; a message that came before changes nothing.

    ``sequence`` is the last WINDOWS sequence taken in, whether its tick has closed or not; ``impossible`` counts cells
    with numbers that cannot be (`bounds`).
    """

    def __init__(self, test_id: str, sequence: int = 0) -> None:
        self.test_id = test_id
        self.sequence = sequence
        self.impossible = 0
        self._second: int | None = None
        self._cells: list[Cell] = []

    def add(self, sequence: int, time_ms: int, window: Window) -> Tick | None:
        """Take in a window (its stream sequence and broker time); the tick that this closes, if any."""
        if sequence <= self.sequence:
            return None
        second = time_ms // 1000
        closed = None
        if self._second is None:
            self._second = second
        elif second > self._second:
            closed = self.open_tick()
            self._second, self._cells = second, []
        self.sequence = sequence
        self._cells.extend(self._own(window.cells))
        return closed

    def open_tick(self) -> Tick | None:
        """The tick that is still open, as it stands; None before the first window."""
        if self._second is None:
            return None
        return Tick(self._second, self.sequence, tuple(self._cells))

    def _own(self, cells: Iterable[Cell]) -> Iterable[Cell]:
        for cell in cells:
            if cell.test == self.test_id:
                possible = within(cell)
                self.impossible += possible is not cell
                yield possible
