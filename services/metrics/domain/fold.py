"""Folds fact batches of one partition into windows.

Pure: the broker's time of every batch is an argument, and the state is what the partition's stored windows say.
"""

from schemas.v1.common import ERRORS, Outcome
from schemas.v1.windows import OUTCOME_KINDS
from services.metrics.domain.cells import CellKey, OpenCell
from services.metrics.domain.opinions import Kind, hear
from services.metrics.domain.records import Fact, FactBatch, Feedback, NewUnits, Watermark, Window
from services.metrics.domain.units import KIND_BITS, TestUnits, UnitBook

MAX_EPOCHS = 256
"""Router processes whose highest batch number is kept, the least recently heard of going first."""

BYTES_PER_FACT = 300
BYTES_PER_CELL = 1500
"""Upper bounds of what a fact (or feedback) and a cell add to a window message: bins, one unit bucket, eight hashes."""

_KIND_OF = {outcome: kind for kind, outcome in enumerate(OUTCOME_KINDS)}


class Fold:
    """State of one partition: how far it has come, which units it has seen, and the open window.

    Invariants: a batch counts once, whatever sequence it comes under; sums do not depend on the order of facts
    (only which request of a unit is its first does).
    """

    def __init__(self, partition: int, writer: str, watermark: Watermark, units: UnitBook) -> None:
        self.partition = partition
        self.writer = writer
        self.units = units
        self.stream_created = watermark.stream_created
        self.last_seq = watermark.last_seq
        self.last_time_ms = watermark.last_time_ms
        self.batches = dict(watermark.batches)
        self.facts = 0
        self.duplicates = 0
        self.missing_batches = 0
        self._cells: dict[CellKey, OpenCell] = {}

    @property
    def size(self) -> int:
        """About how many bytes the open window would take, never less than it does."""
        return self.facts * BYTES_PER_FACT + len(self._cells) * BYTES_PER_CELL

    def skip(self, sequence: int, time_ms: int) -> None:
        """Pass over a message (its METRICS sequence and broker time), folded or not."""
        self.last_seq, self.last_time_ms = sequence, time_ms

    def fold(self, batch: FactBatch, sequence: int, time_ms: int) -> bool:
        """Add a batch (its METRICS sequence and broker time); False when it is a repetition, which changes nothing."""
        self.skip(sequence, time_ms)
        highest = self.batches.pop(batch.router_epoch, None)
        self.batches[batch.router_epoch] = max(batch.n, highest or 0)
        if highest is not None and batch.n <= highest:
            self.duplicates += 1
            return False
        self.missing_batches += batch.n - (highest or 0) - 1
        while len(self.batches) > MAX_EPOCHS:
            del self.batches[next(iter(self.batches))]
        known: dict[str, TestUnits] = {}
        for arm in batch.admitted:
            units = known.get(arm.test) or known.setdefault(arm.test, self._units(arm.test, batch, time_ms))
            cell = self._cell((arm.test, arm.variant, arm.share_bp, units.now.epoch, ""))
            cell.admitted += arm.count
            erased = self.units.erased.get(arm.test, ())
            new = sum(unit in erased or units.seen_test.add(unit) for unit in [int(unit, 16) for unit in arm.units])
            cell.units.new_test += arm.alone + new
            self.facts += len(arm.units)
        for fact in batch.facts:
            units = known.get(fact.test) or known.setdefault(fact.test, self._units(fact.test, batch, time_ms))
            self._add(fact, units, admitted=batch.admits_units)
        for said in batch.feedback:
            units = known.get(said.test) or known.setdefault(said.test, self._units(said.test, batch, time_ms))
            self._hear(said, units)
        self.facts += len(batch.facts) + len(batch.feedback)
        return True

    def _units(self, test: str, batch: FactBatch, time_ms: int) -> TestUnits:
        units, clock = self.units.of(test, time_ms), batch.tests.get(test)
        if clock is not None:
            units.advance(max(0, time_ms - clock.started_ms) // (clock.epoch_seconds * 1000))
        return units

    def _cell(self, key: CellKey) -> OpenCell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = OpenCell(key)
        return cell

    def _add(self, fact: Fact, units: TestUnits, *, admitted: bool) -> None:
        key = (fact.test, fact.variant, fact.share_bp, units.now.epoch, fact.digest)
        cell = self._cells.get(key) or self._cell(key)
        unit = int(fact.unit, 16)
        sticky = fact.sticky and unit not in self.units.erased.get(fact.test, ())
        if fact.kind == "overdue":
            cell.overdue += 1
            if not sticky or units.now.overdue.add(unit):
                cell.units.first_overdue += 1
            return
        cell.finals.append(fact)
        cell.hashes.append(unit)
        cell.overdue_done += fact.was_overdue
        cell.fallback += fact.fallback
        if sticky:
            _sticky(cell, fact, unit, units)
        else:
            _alone(cell, fact)
            cell.units.new_test += not admitted

    def _hear(self, feedback: Feedback, units: TestUnits) -> None:
        """The first value of each kind counts for a token, and again in what counts a unit once in the test."""
        ids = units.ids(feedback.expires_s)
        if ids is None:
            return
        key = (feedback.test, feedback.variant, feedback.share_bp, units.now.epoch, "")
        token, unit = int(feedback.id, 16) & ~KIND_BITS, int(feedback.unit, 16)
        sticky = feedback.sticky and unit not in self.units.erased.get(feedback.test, ())

        def first(kind: Kind) -> bool:
            return not sticky or units.feedback_units.add(unit & ~KIND_BITS | kind)

        for kind, value in (
            (Kind.THUMBS, feedback.thumbs_up),
            (Kind.CONVERSION, feedback.converted),
            (Kind.SCORE, feedback.score_micro),
        ):
            if value is not None and ids.add(token | kind):
                hear(self._cell(key), kind, int(value), unit, first)

    def close(self) -> Window:
        """The window as it is to be published; the next one is open afterwards."""
        cells = [self._cells[key].close() for key in sorted(self._cells)]
        self._cells = {}
        self.facts = 0
        return Window(
            partition=self.partition,
            writer=self.writer,
            watermark=Watermark(self.stream_created, self.last_seq, self.last_time_ms, dict(self.batches)),
            cells=cells,
            new_units=self.units.take_new(),
            rebuild_from=self.units.rebuild_from(),
        )

    def stored(self, new_units: list[NewUnits], sequence: int) -> None:
        """Note the WINDOWS sequence under which the last closed window was stored."""
        self.units.stored(new_units, sequence)


def _sticky(cell: OpenCell, fact: Fact, unit: int, units: TestUnits) -> None:
    """A unit counts once in each epoch (of outcomes once for each kind), and its errors once more in the whole test."""
    evidence, now = cell.units, units.now
    if now.seen.add(unit):
        evidence.new += 1
        cell.first.append(fact)
        evidence.new_test += units.seen_test.add(unit)
    if fact.outcome in ERRORS:
        if now.errors.add(unit):
            evidence.first_errors += 1
            evidence.first_errors_test += units.errors_test.add(unit)
    elif fact.outcome is Outcome.CLIENT_ERROR and now.client_errors.add(unit):
        evidence.first_client_errors += 1
    kind = _KIND_OF.get(fact.outcome)
    if kind is not None and now.outcomes.add(unit & ~KIND_BITS | kind):
        _outcome(cell, fact.outcome)


def _alone(cell: OpenCell, fact: Fact) -> None:
    """A request without a unit of its own is a unit of one request."""
    evidence = cell.units
    evidence.new += 1
    cell.first.append(fact)
    if fact.outcome in ERRORS:
        evidence.first_errors += 1
        evidence.first_errors_test += 1
    elif fact.outcome is Outcome.CLIENT_ERROR:
        evidence.first_client_errors += 1
    if fact.outcome in _KIND_OF:
        _outcome(cell, fact.outcome)


def _outcome(cell: OpenCell, outcome: Outcome) -> None:
    counts = cell.units.first_outcomes
    counts[outcome] = counts.get(outcome, 0) + 1
