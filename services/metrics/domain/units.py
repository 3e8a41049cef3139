"""Which units have been seen, for each test and unit epoch, and what of it the open window must carry.

A unit is a salted 64-bit hash. The sets of one epoch are dropped when the test's next epoch begins; what must
count once in the whole test (`seen_test`, `errors_test`) stays until the test is forgotten.

The sets are rebuilt from the stored windows. So that a restart need not read a test's windows from its beginning,
known hashes are carried again now and then, a few in each window (a sweep): once all have been, rebuilding may
begin where that sweep began.
"""

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from services.metrics.domain.records import NewUnits

GRACE_MS = 3_600_000
"""How long after its last fact an ended test is remembered, so that facts resent late do not count twice."""
SWEEP_AFTER = 900
"""Windows (seconds) after which what is known of a test is carried again."""
SWEEP_CHUNK = 128
"""Known hashes that one window carries again at most: 1.4 KB."""

OF_EPOCH = ("seen", "errors", "client_errors", "overdue", "outcomes")
OF_TEST = ("seen_test", "errors_test", "feedback_units")
IDS = "feedback_ids."
"""Name of the ids of one day's tokens, before the day."""
DAY_S = 86_400

KIND_BITS = 7
"""Hashes of feedback and of outcomes carry the kind in these bits. Within a partition those of a unit are all alike."""
WITH_KIND = ("outcomes", "feedback_units")
Erased = Mapping[str, Collection[int]]
"""Units that were erased, by test: from then on nobody of their own."""


def pack(hashes: Collection[int]) -> str:
    """Base64 of little-endian uint64 hashes, in the order given."""
    if not hashes:
        return ""
    return base64.b64encode(np.fromiter(hashes, dtype="<u8", count=len(hashes)).tobytes()).decode()


def unpack(text: str) -> list[int]:
    """The hashes that `pack` encoded. Raises ValueError for anything else."""
    raw = base64.b64decode(text, validate=True)
    return np.frombuffer(raw, dtype="<u8").tolist() if raw else []


class HashLog:
    """A set that remembers the order in which it grew, and what has been taken from it."""

    __slots__ = ("_known", "_order", "_taken")

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._order: list[int | None] = []
        self._taken = 0

    def __len__(self) -> int:
        return len(self._order)

    def add(self, unit: int) -> bool:
        """Add a hash; whether it is new."""
        if unit in self._known:
            return False
        self._known.add(unit)
        self._order.append(unit)
        return True

    def discard(self, unit: int) -> None:
        """Forget a hash; the places of the others stay."""
        if unit in self._known:
            self._known.remove(unit)
            self._order[self._order.index(unit)] = None

    def take(self) -> list[int]:
        """What was added since the last call."""
        fresh = self.slice(self._taken, len(self._order))
        self._taken = len(self._order)
        return fresh

    def slice(self, start: int, end: int) -> list[int]:
        """Hashes in the order in which they were added."""
        return [unit for unit in self._order[start:end] if unit is not None]


@dataclass(slots=True)
class EpochUnits:
    """Units of one epoch of a test; ``outcomes`` has a hash for each unit and kind of outcome that it had."""

    epoch: int = 0
    seen: HashLog = field(default_factory=HashLog)
    errors: HashLog = field(default_factory=HashLog)
    client_errors: HashLog = field(default_factory=HashLog)
    overdue: HashLog = field(default_factory=HashLog)
    outcomes: HashLog = field(default_factory=HashLog)


@dataclass(slots=True)
class Sweep:
    """Carrying again everything that was known of a test when the sweep began."""

    parts: list[tuple[str, HashLog, int]]
    began_tick: int
    began_seq: int = 0
    part: int = 0
    position: int = 0

    @property
    def done(self) -> bool:
        """Whether everything has been carried."""
        return self.part >= len(self.parts)


@dataclass(slots=True)
class TestUnits:
    """Units of one test: those of its present epoch and those of the whole test.

    ``first_seq`` is the WINDOWS sequence from which they can be rebuilt; 0 while that window is not stored yet.
    ``since_tick`` is its place in the count of windows.
    """

    __test__ = False

    since_tick: int = 0
    now: EpochUnits = field(default_factory=EpochUnits)
    seen_test: HashLog = field(default_factory=HashLog)
    errors_test: HashLog = field(default_factory=HashLog)
    feedback_units: HashLog = field(default_factory=HashLog)
    feedback_ids: dict[int, HashLog] = field(default_factory=dict)
    ended: list[EpochUnits] = field(default_factory=list)
    sweep: Sweep | None = None
    first_seq: int = 0
    last_fact_ms: int = 0

    def advance(self, epoch: int) -> None:
        """Begin a later epoch, in which every unit counts afresh; an earlier one (a clock stepped back) is ignored."""
        if epoch > self.now.epoch:
            self.ended.append(self.now)
            self.now = EpochUnits(epoch)

    def logs(self) -> Iterator[tuple[str, HashLog]]:
        """All that must be known now, by name."""
        yield from self.units()
        for day, log in sorted(self.feedback_ids.items()):
            yield f"{IDS}{day}", log

    def units(self) -> Iterator[tuple[str, HashLog]]:
        """What is known of units, by name."""
        for name in OF_EPOCH:
            yield name, getattr(self.now, name)
        for name in OF_TEST:
            yield name, getattr(self, name)

    def erase(self, unit: int) -> None:
        """Forget a unit in all sets, whatever kinds it stands there with."""
        for past in (self.now, *self.ended):
            for name in OF_EPOCH:
                _discard(getattr(past, name), name, unit)
        for name in OF_TEST:
            _discard(getattr(self, name), name, unit)

    def ids(self, expires_s: int) -> HashLog | None:
        """Ids of the tokens that expire on that day; None when it is so long ago that they have been forgotten."""
        day = expires_s // DAY_S
        if self._forgotten(day):
            return None
        return self.feedback_ids.setdefault(day, HashLog())

    def heard(self, time_ms: int) -> None:
        """Something came at this time of the broker: ids of tokens that expired a day before it are forgotten."""
        self.last_fact_ms = max(self.last_fact_ms, time_ms)
        for day in [day for day in self.feedback_ids if self._forgotten(day)]:
            del self.feedback_ids[day]

    def _forgotten(self, day: int) -> bool:
        return self.last_fact_ms // 1000 >= (day + 2) * DAY_S

    def begin_sweep(self, tick: int) -> None:
        """Carry everything known once more, beginning with the window of this tick."""
        self.sweep = Sweep([(name, log, len(log)) for name, log in self.logs() if len(log)], tick)

    def swept(self, budget: int) -> dict[str, list[int]]:
        """The next hashes of the sweep, at most ``budget``; those of an epoch that has ended are no longer needed."""
        found: dict[str, list[int]] = {}
        current = dict(self.logs())
        while self.sweep is not None and not self.sweep.done and budget > 0:
            name, log, end = self.sweep.parts[self.sweep.part]
            if current.get(name) is log:
                start = self.sweep.position
                stop = min(end, start + budget)
                found.setdefault(name, []).extend(log.slice(start, stop))
                budget -= stop - start
                self.sweep.position = stop
                if self.sweep.position < end:
                    continue
            self.sweep.part, self.sweep.position = self.sweep.part + 1, 0
        return found


def _discard(log: HashLog, name: str, unit: int) -> None:
    if name not in WITH_KIND:
        log.discard(unit)
        return
    for kind in range(KIND_BITS + 1):
        log.discard(unit & ~KIND_BITS | kind)


def carried(new: NewUnits, unit: int) -> list[str]:
    """Names of the sets of a window that carry the hash of this unit. Raises ValueError for a set of something else."""
    found = []
    for name in (*OF_EPOCH, *OF_TEST):
        text = getattr(new, name)
        if text:
            hashes, wanted = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8"), unit
            if name in WITH_KIND:
                hashes, wanted = hashes | np.uint64(KIND_BITS), unit | KIND_BITS
            if bool((hashes == np.uint64(wanted)).any()):
                found.append(name)
    return found


def _carrying(new: NewUnits, hashes: dict[str, list[int]]) -> NewUnits:
    for name, found in hashes.items():
        setattr(new, name, pack(found))
    return new


class UnitBook:
    """Units of all tests of one partition."""

    def __init__(self) -> None:
        self.tests: dict[str, TestUnits] = {}
        self.erased: Erased = {}
        self._tick = 0

    def erase(self, erased: Erased) -> None:
        """Forget these units, and take what still comes of them for requests without a unit of their own.

        The very mapping given before means that none has come since.
        """
        if erased is self.erased:
            return
        for test, units in erased.items():
            if test in self.tests:
                for unit in set(units).difference(self.erased.get(test, ())):
                    self.tests[test].erase(unit)
        self.erased = erased

    def of(self, test: str, now_ms: int) -> TestUnits:
        """The units of a test, none yet if it is new."""
        units = self.tests.get(test)
        if units is None:
            units = self.tests[test] = TestUnits(since_tick=self._tick)
        units.heard(now_ms)
        return units

    def take_new(self) -> list[NewUnits]:
        """What the window that closes now must carry."""
        budget = SWEEP_CHUNK
        found = []
        for test, units in sorted(self.tests.items()):
            found += [
                _carrying(NewUnits(test, past.epoch), {n: getattr(past, n).take() for n in OF_EPOCH})
                for past in units.ended
            ]
            units.ended = []
            fresh = {name: log.take() for name, log in units.logs()}
            if units.sweep is None and self._tick - units.since_tick >= SWEEP_AFTER:
                units.begin_sweep(self._tick)
            for name, hashes in units.swept(budget).items():
                budget -= len(hashes)
                fresh[name] += hashes
            ids = {int(name[len(IDS) :]): pack(fresh.pop(name)) for name in list(fresh) if name.startswith(IDS)}
            new = NewUnits(test, units.now.epoch, feedback_ids={day: text for day, text in ids.items() if text})
            found.append(_carrying(new, fresh))
        self._tick += 1
        return [new for new in found if any(getattr(new, name) for name in (*OF_EPOCH, *OF_TEST, "feedback_ids"))]

    def stored(self, new_units: Iterable[NewUnits], sequence: int) -> None:
        """Note that the window that carries these units now has this WINDOWS sequence."""
        for test in {new.test for new in new_units}:
            units = self.tests.get(test)
            if units is None:
                continue
            units.first_seq = units.first_seq or sequence
            if units.sweep is not None:
                units.sweep.began_seq = units.sweep.began_seq or sequence
                if units.sweep.done:
                    units.first_seq, units.since_tick = units.sweep.began_seq, units.sweep.began_tick
                    units.sweep = None

    def replay(self, new_units: Iterable[NewUnits], sequence: int, time_ms: int) -> None:
        """Take in a stored window (its units, WINDOWS sequence and broker time), to rebuild the sets."""
        for new in new_units:
            units = self.of(new.test, time_ms)
            units.first_seq = units.first_seq or sequence
            units.advance(new.epoch)
            for name, log in units.units():
                if name in OF_TEST or new.epoch == units.now.epoch:
                    for unit in unpack(getattr(new, name)):
                        log.add(unit)
                    log.take()
            units.ended = []
            for day, text in new.feedback_ids.items():
                ids = units.ids(day * DAY_S)
                if ids is not None:
                    for hashed in unpack(text):
                        ids.add(hashed)
                    ids.take()
        self._tick += 1

    def rebuild_from(self) -> int:
        """The WINDOWS sequence to rebuild the sets from; 0 when nothing older than the open window matters."""
        return min((units.first_seq for units in self.tests.values() if units.first_seq), default=0)

    def forget(self, live: Collection[str], now_ms: int) -> list[str]:
        """Drop tests that are not live and had no fact for GRACE_MS; returns their ids."""
        gone = [
            test for test, units in self.tests.items() if test not in live and now_ms - units.last_fact_ms > GRACE_MS
        ]
        for test in gone:
            del self.tests[test]
        return gone
