"""Units that were erased: in no set and no window any more, whatever comes of them, and nobody else is touched."""

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Outcome
from services.metrics.domain.fold import Fold
from services.metrics.domain.records import Admitted, Fact, FactBatch, Feedback, NewUnits, TestClock, Watermark, Window
from services.metrics.domain.units import KIND_BITS, OF_EPOCH, OF_TEST, HashLog, UnitBook, carried, unpack

PARTITION = 3
UNITS = [8 * n * 0x9E37_79B9 + PARTITION for n in range(1, 7)]
TESTS = ("ab_test_1", "ab_test_2")
ERASED = UNITS[0]
EXPIRES = 90_000

units = st.sampled_from(UNITS)
tests = st.sampled_from(TESTS)
facts = st.builds(
    lambda test, unit, kind, outcome: Fact(test, "a", 1000, f"{unit:016x}", kind=kind, outcome=outcome, latency_us=5),
    tests, units, st.sampled_from(["final", "final", "overdue"]),
    st.sampled_from([Outcome.OK, Outcome.TIMEOUT, Outcome.CLIENT_ERROR, Outcome.EMPTY, Outcome.REPETITION]),
)  # fmt: skip
said = st.builds(
    lambda test, unit, number: Feedback(test, "a", 1000, f"{unit:016x}", f"{number:016x}", EXPIRES, thumbs_up=True),
    tests, units, st.integers(0, 2**64 - 1),
)  # fmt: skip
arrivals = st.lists(st.one_of(facts, said), max_size=25)


def batch(n: int, what: list[Fact | Feedback]) -> FactBatch:
    clocks = dict.fromkeys(TESTS, TestClock(0, 1000))
    given_facts = [one for one in what if isinstance(one, Fact)]
    admitted = [Admitted(one.test, "a", 1000, 1, units=[one.unit]) for one in given_facts]
    heard = [one for one in what if isinstance(one, Feedback)]
    return FactBatch("r1-1", PARTITION, n, clocks, admitted, given_facts, heard, admits_units=True)


def names(window: Window, unit: int, test: str) -> list[str]:
    return [name for new in window.new_units if new.test == test for name in carried(new, unit)]


def known(book: UnitBook) -> dict[str, dict[str, set[int]]]:
    """What the sets know, by test and name."""
    return {
        test: {name: set(log.slice(0, len(log))) for name, log in of.logs() if log.slice(0, len(log))}
        for test, of in book.tests.items()
    }


@settings(max_examples=40)
@given(arrivals, arrivals, arrivals, st.integers(0, 3))
def test_after_its_erasure_no_window_carries_a_unit_and_a_rebuilt_book_does_not_know_it(
    first: list[Fact | Feedback], second: list[Fact | Feedback], third: list[Fact | Feedback], later: int
) -> None:
    book, plain = UnitBook(), UnitBook()
    fold, other = Fold(PARTITION, "m", Watermark(), book), Fold(PARTITION, "m", Watermark(), plain)
    stored: list[Window] = []
    for one in (fold, other):
        one.fold(batch(1, first), 1, 500)
    stored.append(fold.close())
    fold.stored(stored[-1].new_units, 1)
    other.close()
    for one in (fold, other):
        one.fold(batch(2, second), 2, 1000 * later + 600)  # perhaps in a later epoch, not yet in any window
    book.erase({TESTS[0]: {ERASED}})
    stored.append(fold.close())
    other.close()
    for one in (fold, other):
        one.fold(batch(3, third), 3, 1000 * later + 700)
    stored.append(fold.close())
    for of in book.tests.values():  # everything known is carried again
        of.begin_sweep(0)
    stored.append(fold.close())
    assert all(not names(window, ERASED, TESTS[0]) for window in stored[1:])
    # Of everybody else, and of the same unit in the other test, the same is known as if nobody had been erased.
    found, expected = known(book), known(plain)
    for name, hashes in expected.get(TESTS[0], {}).items():
        wanted = {h for h in hashes if name.startswith("feedback_ids") or h | KIND_BITS != ERASED | KIND_BITS}
        assert found.get(TESTS[0], {}).get(name, set()) == wanted
    assert found.get(TESTS[1]) == expected.get(TESTS[1])
    rebuilt = UnitBook()
    for sequence, window in enumerate(stored, 1):
        rebuilt.replay(window.new_units, sequence, 1000 * later + 700)
    rebuilt.erase({TESTS[0]: {ERASED}})
    for test, of in known(rebuilt).items():
        assert all(hashes == found[test][name] for name, hashes in of.items() if name in OF_TEST)
        assert test != TESTS[0] or all(ERASED not in hashes for hashes in of.values())


@given(arrivals)
def test_requests_of_an_erased_unit_count_like_those_of_nobody(what: list[Fact | Feedback]) -> None:
    erased, nobody = UnitBook(), UnitBook()
    erased.erase({test: set(UNITS) for test in TESTS})
    one, two = Fold(PARTITION, "m", Watermark(), erased), Fold(PARTITION, "m", Watermark(), nobody)
    one.fold(batch(1, what), 1, 500)
    plain = batch(1, what)
    for fact in (*plain.facts, *plain.feedback):
        fact.sticky = False
    for arm in plain.admitted:
        arm.units, arm.alone = [], arm.count
    two.fold(plain, 1, 500)
    mine, theirs = one.close(), two.close()
    assert mine.cells == theirs.cells
    assert all(not getattr(new, name) for new in mine.new_units for name in (*OF_EPOCH, *OF_TEST))


@given(st.lists(units, max_size=20), st.lists(units, max_size=4), st.lists(units, max_size=20))
def test_a_log_forgets_only_what_it_is_told_to(first: list[int], gone: list[int], second: list[int]) -> None:
    log = HashLog()
    for unit in first:
        log.add(unit)
    taken = log.take()
    assert taken == list(dict.fromkeys(first))
    for unit in gone:
        log.discard(unit)
    left = [unit for unit in taken if unit not in gone]
    assert log.slice(0, len(log)) == left
    added = [unit for unit in second if log.add(unit)]
    assert added == [unit for unit in dict.fromkeys(second) if unit not in left]
    assert log.take() == added


def test_a_set_that_is_none_is_refused() -> None:
    new = NewUnits("t", 0, seen="AAAA")
    try:
        carried(new, 1)
    except ValueError:
        assert unpack("") == []
    else:
        raise AssertionError("three bytes are no hash")
