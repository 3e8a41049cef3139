"""Rules of what a promotion rests on, whatever the figures: monotone, mirrored, and of no order."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Outcome
from schemas.v1.windows import Bucket, Cell, UnitEvidence
from services.monitor.domain.effects import Effect, primary_effect
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick
from services.monitor.domain.promotion import conditions
from tests.unit.monitor.synthetic import START_S, TEST, experiment

BUCKETS = 128

sizes = st.integers(200, 20_000)
splits = st.sampled_from([500, 2000, 5000, 9000])
latencies = st.floats(1.0, 60_000.0)


def spread(total: int, index: int) -> int:
    """The part of a total that is in one bucket; the buckets differ by one at most."""
    return total // BUCKETS + (index < total % BUCKETS)


def cell(variant: str, share_bp: int, n: int, errors: int = 0, ms: float = 100.0, beat: int = 1) -> Cell:
    """Requests that are units of their own, spread over all buckets; ``beat`` of these are slow, then as many fast."""
    good = n - errors
    buckets = {}
    for index in range(BUCKETS):
        own = spread(good, index)
        ln = math.log(1000.0 * ms) + 0.1 * (-1) ** (index // beat)
        buckets[index] = Bucket(
            n=own + spread(errors, index), errors=spread(errors, index), latency_n=own, latency_ln=round(1e6 * own * ln)
        )
    return Cell(
        test=TEST, variant=variant, share_bp=share_bp, admitted=n, done=n, buckets=buckets,
        outcomes={Outcome.OK: good, Outcome.TIMEOUT: errors},
        units=UnitEvidence(new=n, new_test=n, first_errors=errors, first_errors_test=errors),
    )  # fmt: skip


def evaluated(*ticks: tuple[Cell, ...], **fields: Any) -> TestEvaluator:
    evaluator = TestEvaluator(experiment(**fields))
    for second, cells in enumerate(ticks):
        evaluator.tick(Tick(START_S + second, second + 1, cells))
    assert evaluator.exceptions == []
    return evaluator


def judged(*ticks: tuple[Cell, ...], metric: str = "error_rate") -> Effect:
    return primary_effect(evaluated(*ticks, primary_metric=metric))


@settings(max_examples=150, deadline=None)
@given(splits, sizes, sizes, st.data())
def test_more_errors_of_b_never_help_its_promotion(share_bp: int, n_a: int, n_b: int, data: st.DataObject) -> None:
    of_a = data.draw(st.integers(0, n_a // 4))
    of_b = data.draw(st.integers(0, min(n_b - 1, max(40, round(of_a * n_b / n_a)))))
    more = data.draw(st.integers(1, n_b - of_b))

    def met(errors: int) -> tuple[bool, bool]:
        evaluator = evaluated((cell("a", share_bp, n_a, of_a), cell("b", share_bp, n_b, errors)), primary_metric="error_rate")
        found = {condition.name: condition.met for condition in conditions(evaluator)}
        return found["errors_not_worse"], found["primary_metric"]

    before, after = met(of_b), met(of_b + more)
    assert all(new <= old for new, old in zip(after, before, strict=True)), (before, after)


@settings(max_examples=60, deadline=None)
@given(splits, sizes, sizes, latencies, latencies)
def test_swapped_arms_have_the_opposite_effect(share_bp: int, n_a: int, n_b: int, ms_a: float, ms_b: float) -> None:
    def effect(*arms: tuple[int, float, int]) -> Effect:
        cells = (cell(variant, share_bp, n, 0, ms, beat) for variant, (n, ms, beat) in zip("ab", arms, strict=True))
        return judged(tuple(cells), metric="latency")

    first, second = (n_a, ms_a, 1), (n_b, ms_b, 2)
    straight, swapped = effect(first, second), effect(second, first)

    def factor(percent: float | None) -> float:
        assert percent is not None
        return 1.0 + percent / 100.0

    assert factor(straight.percent) * factor(swapped.percent) == pytest.approx(1.0, rel=1e-6)
    assert factor(straight.low) * factor(swapped.high) == pytest.approx(1.0, rel=1e-6)
    assert factor(straight.high) * factor(swapped.low) == pytest.approx(1.0, rel=1e-6)
    assert not (straight.met and swapped.met)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["error_rate", "latency"]), st.data())
def test_the_order_of_seconds_is_nothing_to_what_is_compared_over_the_whole_test(metric: str, data: st.DataObject) -> None:
    small = st.integers(50, 2000)
    ticks = [
        tuple(
            cell(variant, share_bp, n := data.draw(small), data.draw(st.integers(0, n // 5)), data.draw(latencies), beat)
            for variant, beat in (("a", 1), ("b", 2))
        )
        for share_bp in data.draw(st.lists(splits, min_size=1, max_size=4))
    ]
    assert judged(*ticks, metric=metric) == judged(*data.draw(st.permutations(ticks)), metric=metric)


@settings(max_examples=100, deadline=None)
@given(splits, sizes, sizes, st.data())
def test_what_it_needs_is_finite_and_nothing_once_it_is_shown(share_bp: int, n_a: int, n_b: int, data: st.DataObject) -> None:
    of_a, of_b = data.draw(st.integers(0, n_a // 4)), data.draw(st.integers(0, n_b // 4))
    effect = judged((cell("a", share_bp, n_a, of_a), cell("b", share_bp, n_b, of_b)))
    if effect.met:
        assert effect.needs == 0
    elif effect.needs is None:  # nothing speaks for B, or there is no telling
        assert effect.hold or effect.against or effect.better < 3.0
    else:
        assert 0 < effect.needs <= 10**9
    if not of_a:
        assert effect.hold is not None
        assert "another primary metric" in effect.hold
        assert effect.needs is None
