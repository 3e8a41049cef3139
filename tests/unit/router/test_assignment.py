"""Assignment: uniform, independent between tests, monotone, stable, and by the stated precedence."""

import math

from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from schemas.v1.experiment import SLOTS
from services._runtime.settings_model import AssignmentSettings
from services.router.domain.assignment import SlotTable, partition_of, slot_of, unit_hash, unit_of
from services.router.domain.slots import resize

UNITS = [f"user-{i}".encode() for i in range(40_000)]


def test_slots_are_uniform() -> None:
    counts = [0] * 100
    for unit in UNITS:
        counts[slot_of(b"salt-1", unit) // 100] += 1
    assert stats.chisquare(counts).pvalue > 1e-6


def test_two_tests_assign_independently() -> None:
    table = [[0] * 10 for _ in range(10)]
    for unit in UNITS:
        table[slot_of(b"salt-1", unit) // 1000][slot_of(b"salt-2", unit) // 1000] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_the_slot_says_nothing_about_the_unit_hash_or_partition() -> None:
    table = [[0] * 8 for _ in range(10)]
    for unit in UNITS:
        table[slot_of(b"same-salt", unit) // 1000][partition_of(unit_hash(b"same-salt", unit))] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-6


def test_the_share_of_units_is_the_share_of_slots() -> None:
    for share in (1, 100, 2000, 5000):
        b = SlotTable(b"salt", resize([], share))
        got = sum(b.is_b(unit) for unit in UNITS)
        want = len(UNITS) * share / SLOTS
        assert abs(got - want) <= 5 * math.sqrt(want + 1)


@given(st.lists(st.integers(0, SLOTS), min_size=2, max_size=8), st.binary(min_size=1, max_size=16))
def test_a_ramp_moves_units_from_a_to_b_only(shares: list[int], salt: bytes) -> None:
    ranges: list[tuple[int, int]] = []
    for before, after in zip([0, *shares], shares, strict=False):
        old, ranges = SlotTable(salt, ranges), resize(ranges, after)
        new = SlotTable(salt, ranges)
        for unit in UNITS[:100]:
            if after >= before:
                assert new.is_b(unit) or not old.is_b(unit)
            else:
                assert old.is_b(unit) or not new.is_b(unit)


@given(st.sets(st.integers(0, SLOTS - 1), max_size=40), st.binary(min_size=1, max_size=80))
def test_the_table_agrees_with_the_slot(edges: set[int], salt: bytes) -> None:
    points = sorted(edges)
    ranges = list(zip(points[::2], points[1::2], strict=False))
    table = SlotTable(salt, ranges)
    for unit in UNITS[:50]:
        slot = slot_of(salt, unit)
        assert table.is_b(unit) == any(start <= slot < end for start, end in ranges)


def test_precedence_is_the_contract_s() -> None:
    order = AssignmentSettings().unit
    values = {"x_session_id": b"s", "user": b"u", "x_user_id": b"x", "prompt_cache_key": b"p", "api_key": b"k"}
    for source in ("x_session_id", "user", "x_user_id", "prompt_cache_key"):
        assert unit_of(order, values) == values.pop(source)
    assert unit_of(order, values) is None
    assert unit_of(["api_key"], values) == b"k"
    assert unit_of(order, {"x_session_id": b"", "user": b"u"}) == b"u"


def test_the_unit_hash_is_keyed_and_64_bits() -> None:
    assert unit_hash(b"one", b"unit") != unit_hash(b"two", b"unit")
    assert 0 <= unit_hash(b"k" * 100, b"unit") < 1 << 64
    assert len({unit_hash(b"one", unit) for unit in UNITS}) == len(UNITS)
