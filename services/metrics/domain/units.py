"""Which units have been seen, for each test and unit epoch, and what of it is new in the open window.

A unit is a salted 64-bit hash. The sets of one epoch are dropped when the test's next epoch begins; what must
count once in the whole test (`seen_test`, `errors_test`) stays until the test is forgotten.
"""

import base64
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from services.metrics.domain.records import NewUnits

GRACE_MS = 3_600_000
"""How long after its last fact an ended test is remembered, so that facts resent late do not count twice."""


def pack(hashes: Collection[int]) -> str:
    """Base64 of little-endian uint64 hashes, in the order given."""
    if not hashes:
        return ""
    return base64.b64encode(np.fromiter(hashes, dtype="<u8", count=len(hashes)).tobytes()).decode()


def unpack(text: str) -> list[int]:
    """The hashes that `pack` encoded. Raises ValueError for anything else."""
    raw = base64.b64decode(text, validate=True)
    return [int(value) for value in np.frombuffer(raw, dtype="<u8")] if raw else []


@dataclass(slots=True)
class Fresh:
    """Hashes first met in the open window, for one test and epoch."""

    seen: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    client_errors: list[int] = field(default_factory=list)
    overdue: list[int] = field(default_factory=list)
    seen_test: list[int] = field(default_factory=list)
    errors_test: list[int] = field(default_factory=list)


@dataclass(slots=True)
class TestUnits:
    """Units of one test: the sets of its present epoch and those of the whole test.

    ``first_seq`` is the WINDOWS sequence of the first message that carried units of this test; 0 while that
    message has not been stored yet.
    """

    __test__ = False

    epoch: int = 0
    seen: set[int] = field(default_factory=set)
    errors: set[int] = field(default_factory=set)
    client_errors: set[int] = field(default_factory=set)
    overdue: set[int] = field(default_factory=set)
    seen_test: set[int] = field(default_factory=set)
    errors_test: set[int] = field(default_factory=set)
    first_seq: int = 0
    last_fact_ms: int = 0

    def advance(self, epoch: int) -> None:
        """Begin a later epoch, in which every unit counts afresh; an earlier one (a clock stepped back) is ignored."""
        if epoch <= self.epoch:
            return
        self.epoch = epoch
        self.seen, self.errors, self.client_errors, self.overdue = set(), set(), set(), set()


class UnitBook:
    """Units of all tests of one partition."""

    def __init__(self) -> None:
        self.tests: dict[str, TestUnits] = {}
        self._fresh: dict[tuple[str, int], Fresh] = {}

    def of(self, test: str, now_ms: int) -> TestUnits:
        """The sets of a test, new ones if it has none."""
        units = self.tests.get(test)
        if units is None:
            units = self.tests[test] = TestUnits()
        units.last_fact_ms = max(units.last_fact_ms, now_ms)
        return units

    def fresh(self, test: str, epoch: int) -> Fresh:
        """What is new of a test's epoch in the open window."""
        key = (test, epoch)
        fresh = self._fresh.get(key)
        if fresh is None:
            fresh = self._fresh[key] = Fresh()
        return fresh

    def take_new(self) -> list[NewUnits]:
        """What became new since the last call, and begin afresh."""
        new = [
            NewUnits(
                test=test,
                epoch=epoch,
                seen=pack(fresh.seen),
                errors=pack(fresh.errors),
                client_errors=pack(fresh.client_errors),
                overdue=pack(fresh.overdue),
                seen_test=pack(fresh.seen_test),
                errors_test=pack(fresh.errors_test),
            )
            for (test, epoch), fresh in sorted(self._fresh.items())
            if fresh.seen or fresh.errors or fresh.client_errors or fresh.overdue
        ]
        self._fresh = {}
        return new

    def replay(self, new_units: Iterable[NewUnits], sequence: int, time_ms: int) -> None:
        """Take in the units of a stored window (its WINDOWS sequence and broker time), to rebuild the sets."""
        for new in new_units:
            units = self.of(new.test, time_ms)
            units.first_seq = units.first_seq or sequence
            units.advance(new.epoch)
            if new.epoch == units.epoch:
                units.seen.update(unpack(new.seen))
                units.errors.update(unpack(new.errors))
                units.client_errors.update(unpack(new.client_errors))
                units.overdue.update(unpack(new.overdue))
            units.seen_test.update(unpack(new.seen_test))
            units.errors_test.update(unpack(new.errors_test))

    def stored(self, new_units: Iterable[NewUnits], sequence: int) -> None:
        """Note that a window with these units now has this WINDOWS sequence."""
        for new in new_units:
            units = self.tests.get(new.test)
            if units is not None and units.first_seq == 0:
                units.first_seq = sequence

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
