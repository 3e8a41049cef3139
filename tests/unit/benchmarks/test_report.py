"""Figures beside their targets."""

import math

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import figure, number, percentile, table


def test_the_median_counts_and_which_way_is_better_decides() -> None:
    slow = figure("latency", [90.0, 110.0, 100.0], "ms", must=200, aim=50)
    assert slow.median == 100.0
    assert slow.verdict() == "met"
    assert slow.against(slow.must) == "x2.00"
    assert slow.against(slow.aim) == "x0.50"
    fast = figure("rate", 40.0, "1/s", must=50, aim=80, higher=True)
    assert fast.verdict() == "MISSED"
    assert fast.against(fast.must) == "x0.80"


def test_what_has_no_target_or_no_value_says_neither_met_nor_missed() -> None:
    assert figure("x", 3).verdict() == ""
    assert figure("x", [], must=1).verdict() == "not measured"
    assert figure("x", math.nan, must=1).verdict() == "not measured"
    assert figure("x", 3, aim=2).verdict() == "aim missed"


def test_a_target_of_none_at_all_is_met_by_nothing_at_all() -> None:
    failures = figure("failures", 0, must=0)
    assert failures.verdict() == "met"
    assert failures.against(failures.must) == "x inf"
    assert figure("failures", 1, must=0).verdict() == "MISSED"


def test_the_table_has_one_row_for_each_figure_and_equal_columns() -> None:
    text = table([figure("a", [1, 3, 2], "ms", must=2, aim=1), figure("a longer name", 12345.6, higher=True, aim=10)])
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "1..3" in lines[2]
    assert "12,346" in lines[3]
    assert ">= 10" in lines[3]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_enough_at_or_below_it(values: list[float], q: float) -> None:
    found = percentile(values, q)
    assert found in values
    assert sum(value <= found for value in values) >= q * len(values)


def test_numbers_keep_three_digits() -> None:
    assert [number(v) for v in (0.01234, 1.5, 123.4, 98765.4, math.nan)] == ["0.0123", "1.5", "123", "98,765", ""]
    assert math.isnan(percentile([], 0.5))
