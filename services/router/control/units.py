"""Export and erasure of one unit: what is held under its hash in every test that still has its salt."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from schemas.v1.common import rfc3339
from schemas.v1.units import Tombstone, UnitQuery, UnitReply
from services._runtime.clock import monotonic, now_ms
from services.router.control import params as p
from services.router.control.base import Done
from services.router.control.parts import Parts
from services.router.domain.assignment import partition_of, unit_hash
from services.router.domain.auth import Principal
from services.router.domain.refusals import Unprocessable
from services.router.domain.salts import ROOT_VERSION

CALL_S = 5.0
"""A call ends with the first page after so long; the cursor says where the next one goes on."""
MAX_FACTS = 1000
ADVANCE_S = 3.0
CLOCKS_MS = 60_000
"""How far a router's clock may be ahead of the broker's."""
Stream = Literal["WINDOWS", "METRICS"]
REMAINS = (
    "hashes in stored windows, until the test's salt is destroyed after its end and they are nobody's; "
    "what was in flight on other routers, which erasing once more finds"
)


HELD = (
    "what is held of an erased unit is its hash in windows stored before: they stay as they are, until the test's salt "
    "is destroyed after its end and the hash is nobody's"
)


@dataclass(frozen=True, slots=True)
class _Test:
    """A test whose units can be hashed: its hash of the unit, and when it began at the earliest."""

    test_id: str
    unit: int
    since_ms: int

    @property
    def unit_hash(self) -> str:
        """The hash as it is stored."""
        return f"{self.unit:016x}"


@dataclass(frozen=True, slots=True)
class _Place:
    """How far one has looked: up to a sequence of a stream, for a test."""

    test: _Test
    stream: Stream
    at: int

    def after(self, sequence: int) -> "_Place":
        """Farther on in the same stream."""
        return replace(self, at=sequence)

    @property
    def cursor(self) -> str:
        """The place as text."""
        return f"{self.test.test_id}/{self.stream}/{self.at}"


class _Budget:
    """What one call may take."""

    def __init__(self) -> None:
        self.facts = 0
        self._deadline = monotonic() + CALL_S

    @property
    def spent(self) -> bool:
        """Whether the rest is for the next call."""
        return self.facts >= MAX_FACTS or monotonic() > self._deadline


class UnitHandlers:
    """One method for each verb: ``(principal, params) -> Done``. All raise Refused; the unit's value goes nowhere."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def units_export(self, _who: Principal, params: p.UnitParams) -> Done:
        """422 for a source that assigns nobody here."""
        raw = self._raw(params)
        found: list[p.UnitOfTest] = []
        budget = _Budget()
        for place in self._places(raw, params.cursor, ("WINDOWS", "METRICS")):
            if found and budget.spent:
                return self._done(_exported(found, next=place.cursor), raw)
            if not found or found[-1].test_id != place.test.test_id:
                found.append(self._shown(place.test))
            async for page in self._pages(place, budget):
                _add(found[-1], page)
            if not page.complete:
                return self._done(_exported(found, next=place.after(page.last).cursor), raw)
        return self._done(_exported(found), raw)

    async def units_erase(self, _who: Principal, params: p.UnitParams) -> Done:
        """422 for a source that assigns nobody here. Said twice, it finds what came in between."""
        raw = self._raw(params)
        found: list[p.UnitErased] = []
        budget = _Budget()
        # First of all in every test: what takes its time afterwards changes nothing for the unit.
        stones = {test.test_id: await self._bury(test) for test in self._tests(raw)}
        for place in self._places(raw, params.cursor, ("METRICS",)):
            if found and budget.spent:
                return self._done(p.UnitsErased(tests=found, next=place.cursor, remains=REMAINS), raw)
            test = place.test
            stone = stones.get(test.test_id) or await self._bury(test)
            found.append(
                p.UnitErased(test_id=test.test_id, unit_hash=test.unit_hash, erased_at=rfc3339(stone.at_ms))
            )
            # The newest message of a partition is never deleted: something must come after what is to go.
            await self._parts.path().advance_facts(partition_of(test.unit), ADVANCE_S)
            async for page in self._pages(place, budget, erase=True):
                found[-1].batches += page.erased
                found[-1].left += page.left
            if not page.complete:
                further = place.after(page.last).cursor
                return self._done(p.UnitsErased(tests=found, next=further, remains=REMAINS), raw)
        return self._done(p.UnitsErased(tests=found, remains=REMAINS), raw)

    async def _pages(self, place: "_Place", budget: "_Budget", *, erase: bool = False) -> AsyncIterator[UnitReply]:
        """At least one page, and as many as the call may have."""
        while True:
            page = await self._parts.queries.unit(
                UnitQuery(
                    test_id=place.test.test_id, unit=place.test.unit_hash, stream=place.stream, after=place.at,
                    since_ms=place.test.since_ms, erase=erase,
                )
            )  # fmt: skip
            budget.facts += len(page.facts)
            yield page
            if page.complete or budget.spent:
                return
            place = place.after(page.last)

    # ------------------------------------------------------------------------------------------------------

    async def _bury(self, test: _Test) -> Tombstone:
        stone = Tombstone(test_id=test.test_id, unit=test.unit_hash, at_ms=now_ms())
        return await self._parts.erasures.erase(stone)

    def _done(self, body: p.UnitsExported | p.UnitsErased, raw: bytes) -> Done:
        after = {"tests": len(body.tests), "page": "last" if body.next is None else "further ones follow"}
        return Done(body, target=f"unit:{self._parts.salts.alias(raw)}", after=after)

    def _raw(self, params: p.UnitParams) -> bytes:
        order = self._parts.settings.assignment.unit
        if params.source is not None and params.source not in order:
            raise Unprocessable(
                f"source '{params.source}' assigns nobody here: assignment.unit names {', '.join(order)}",
                param="source",
            )
        return params.unit.encode("utf-8", "surrogatepass")

    def _places(self, raw: bytes, cursor: str | None, streams: tuple[Stream, ...]) -> Iterator[_Place]:
        """Test by test and stream by stream, from the cursor on."""
        at_test, at_stream, at = (cursor or "//0").split("/")
        for test in self._tests(raw):
            here = test.test_id == at_test
            for stream in streams:
                passed = here and at_stream in streams and streams.index(stream) < streams.index(at_stream)
                if test.test_id >= at_test and not passed:
                    yield _Place(test, stream, int(at) if here and stream == at_stream else 0)

    def _tests(self, raw: bytes) -> list[_Test]:
        """Every test that still has its salt, oldest first."""
        salts = self._parts.salts
        found = {salt.test_id: (salt.version, salt.created_ms) for salt in salts.all()}
        for entry in self._parts.experiments.entries():
            if entry.unit_salt_version == ROOT_VERSION:
                found[entry.test_id] = (ROOT_VERSION, entry.created_ms)
        tests = []
        for test_id, (version, created_ms) in sorted(found.items()):
            key = salts.key(version)
            if key is not None:
                tests.append(_Test(test_id, unit_hash(key, raw), max(1, created_ms - CLOCKS_MS)))
        return tests

    def _shown(self, test: _Test) -> p.UnitOfTest:
        stone = self._parts.erasures.stone(test.test_id, test.unit)
        erased_at = None if stone is None else rfc3339(stone.at_ms)
        return p.UnitOfTest(test_id=test.test_id, unit_hash=test.unit_hash, erased_at=erased_at)


def _add(shown: p.UnitOfTest, page: UnitReply) -> None:
    shown.held = sorted({*shown.held, *page.held})
    shown.windows += page.windows
    if page.first_ms is not None and page.last_ms is not None:
        shown.first_seen = shown.first_seen or rfc3339(page.first_ms)
        shown.last_seen = rfc3339(page.last_ms)
    shown.facts += [fact.model_dump(mode="json", exclude_none=True) for fact in page.facts]
    shown.variant = shown.variant or next((fact.variant for fact in page.facts), None)


def _exported(tests: list[p.UnitOfTest], next: str | None = None) -> p.UnitsExported:  # noqa: A002 - the reply's own word
    held = any(test.erased_at and test.held for test in tests)
    return p.UnitsExported(tests=tests, next=next, remains=HELD if held else None)
