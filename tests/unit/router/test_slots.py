"""Slots: exact shares, growing only takes from A, shrinking gives back what was taken last."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.experiment import SLOTS
from services.router.domain import slots

shares = st.integers(0, SLOTS)


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {slot for start, end in ranges for slot in range(start, end)}


@given(st.lists(shares, min_size=1, max_size=8))
def test_every_resize_holds_exactly_the_share_and_moves_one_way(steps: list[int]) -> None:
    held: list[tuple[int, int]] = []
    for want in steps:
        before, held = members(held), slots.resize(held, want)
        after = members(held)
        assert slots.size(held) == len(after) == want
        assert after <= set(range(SLOTS))
        assert before <= after or after <= before
        assert all(start < end for start, end in held)


@given(shares, st.lists(shares, max_size=5))
def test_growing_never_moves_a_unit_of_b_back_to_a(start: int, grows: list[int]) -> None:
    held = slots.resize([], start)
    for want in sorted(grows):
        if want >= slots.size(held):
            before = members(held)
            held = slots.resize(held, want)
            assert before <= members(held)


@given(shares, shares)
def test_shrinking_undoes_growing_exactly(low: int, high: int) -> None:
    low, high = sorted((low, high))
    small = slots.resize([], low)
    assert members(slots.resize(slots.resize(small, high), low)) == members(small)


@st.composite
def two_arms(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    cuts = sorted(draw(st.lists(shares, min_size=4, max_size=4, unique=True)))
    return [(cuts[0], cuts[1])], [(cuts[2], cuts[3])]


@given(two_arms(), shares)
def test_other_arms_are_never_touched(arms: tuple[list[tuple[int, int]], list[tuple[int, int]]], want: int) -> None:
    held, others = arms
    if want > SLOTS - slots.size(others):
        with pytest.raises(ValueError, match="too few to give"):
            slots.resize(held, want, others)
        return
    new = slots.resize(held, want, others)
    assert slots.size(new) == want
    assert not members(new) & members(others)


@given(two_arms(), shares, shares)
def test_shrinking_gives_back_the_last_taken_first_also_around_other_arms(
    arms: tuple[list[tuple[int, int]], list[tuple[int, int]]], more: int, back: int
) -> None:
    held, others = arms
    more = min(slots.size(held) + more, SLOTS - slots.size(others))
    grown = slots.resize(held, max(more, slots.size(held)), others)
    if back >= slots.size(held):
        shrunk = slots.resize(grown, min(back, slots.size(grown)), others)
        assert members(held) <= members(shrunk)


@pytest.mark.parametrize("want", [-1, SLOTS + 1])
def test_impossible_sizes_are_refused(want: int) -> None:
    with pytest.raises(ValueError, match="0 to 10000"):
        slots.resize([], want)


def test_holds_is_half_open() -> None:
    assert slots.holds([(0, 5), (9, 10)], 9)
    assert not slots.holds([(0, 5), (9, 10)], 5)
