"""Latencies, costs and scores that are all the same: what is plain is decided, and nothing fires wrongly or is blind."""

import math

import pytest

from schemas.v1.common import Decision
from services.monitor.domain import verdict
from services.monitor.domain.effects import primary_effect
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.promotion import conditions
from services.monitor.domain.waiting import Condition
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream


def constant(a_ms: float, b_ms: float, seconds: int = 40, users: int = 0, b_errors: float = 0.0, **fields: object) -> TestEvaluator:
    """Two models that take the same time for every answer."""
    arms = (Arm(errors=0.0, median_ms=a_ms, sigma=0.0), Arm(errors=b_errors, median_ms=b_ms, sigma=0.0))
    traffic = Traffic(31, *arms, share_bp=5000, per_second=60, users=users)
    criteria = {"negligible_error_rate_percent": 1.0}
    evaluator, ticker = TestEvaluator(experiment(share_bp=5000, success_criteria=criteria, **fields)), Ticker(TEST)
    for message in stream(traffic, seconds):
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
    assert evaluator.exceptions == []
    assert len(evaluator.totals.of("b").moments["latency"].bins) == 1
    return evaluator


def of(evaluator: TestEvaluator, name: str) -> Condition:
    return next(condition for condition in conditions(evaluator) if condition.name == name)


def test_equal_models_are_shown_to_be_equal() -> None:
    evaluator = constant(100, 100)
    assert of(evaluator, "latency_not_worse").met
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.KEEP_A, "no_improvement"), record.reason
    assert "too few units" not in record.reason
    effect = verdict.status(evaluator).effect
    assert effect is not None
    assert (effect.effect, effect.hold) == (pytest.approx(0.0), None)
    assert effect.low is not None
    assert effect.high is not None
    assert -5.0 < effect.low < 0.0 < effect.high < 5.0
    assert not evaluator.findings


def test_a_canary_that_is_faster_every_time_is_promoted() -> None:
    record = verdict.decide(constant(100, 80))
    assert record.decision is Decision.PROMOTE_B, record.reason
    assert record.value == pytest.approx(-20.0, abs=0.01)
    assert record.bound is not None
    assert -20.0 < record.bound < -10.0


def test_a_little_data_says_how_much_more_there_must_be() -> None:
    evaluator = constant(100, 93, seconds=4)
    condition = of(evaluator, "primary_metric")
    assert not condition.met
    assert condition.needs_requests is not None
    assert 0 < condition.needs_requests < 20_000
    assert verdict.decide(constant(100, 93, seconds=4 + condition.needs_requests // 60)).decision is Decision.PROMOTE_B


def test_few_users_are_named_as_the_reason_only_where_they_are_it() -> None:
    assert "too few units" in of(constant(100, 80, users=25), "primary_metric").text
    assert "too few units" not in of(constant(100, 80, users=2000), "primary_metric").text


@pytest.mark.parametrize("share_bp", [500, 5000])
def test_a_canary_exactly_twice_as_slow_is_rolled_back(share_bp: int) -> None:
    traffic = Traffic(
        32, Arm(errors=0.0, median_ms=100, sigma=0.0), Arm(errors=0.0, median_ms=200, sigma=0.0), share_bp=share_bp, per_second=60
    )
    evaluator, ticker = TestEvaluator(experiment(share_bp=share_bp)), Ticker(TEST)
    for message in stream(traffic, 60):
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
    fired = evaluator.fired
    assert fired is not None
    assert fired.rule in {"latency_increase", "ttft_increase"}
    assert fired.bad_units >= 3
    assert fired.value == pytest.approx(100, abs=3)
    assert evaluator.totals.requests() > 0
    assert fired.n_a + fired.n_b < {500: 2000, 5000: 400}[share_bp]


@pytest.mark.parametrize("b_ms", [100, 81, 119, 120])
def test_no_guardrail_fires_within_the_margin(b_ms: float) -> None:
    """120 ms are just what the margin of 20 % allows; bins are 2 % wide, and rounding is in the canary's favour."""
    for at in (100, 100.99, 101.9, 777):
        evaluator = constant(at, b_ms * at / 100, seconds=60)
        assert [finding for finding in evaluator.findings if finding.kind != "warning"] == [], at


def test_an_absolute_limit_sees_values_that_are_all_the_same() -> None:
    over = constant(100, 6000, failure_criteria={"max_latency_ms": 5000.0}, guardrails=[
        {"metric": metric, "action": "warn", "margin_percent": 20} for metric in ("latency", "ttft")])  # fmt: skip
    assert over.fired is not None
    assert over.fired.rule in {"max_latency_ms", "critical_latency_ms", "performance_degradation_latency"}
    limits = [check for check in over.checks if check.kind == "absolute_latency" and check.action == "rollback"]
    assert limits
    for limit in limits:
        assert limit.log_e() > over.limit(limit)
        low, high = limit.interval(0.05)
        assert low is not None
        assert high is not None
        assert 5000 < low < 6000 < high < 7000
    both = constant(6000, 6000, failure_criteria={"max_latency_ms": 5000.0})
    assert {finding.kind for finding in both.findings} >= {"both_arms"}
    assert both.fired is None
    near = {"warning_latency_ms": 5000.0, "critical_latency_ms": 5000.0}
    below = constant(4990, 4990, failure_criteria={"max_latency_ms": 5000.0}, thresholds=near)
    assert below.findings == []


@pytest.mark.parametrize(("metric", "a", "b"), [("cost", 2000, 1500), ("score", 3_000_000, 4_000_000)])
def test_costs_and_scores_that_are_all_the_same_are_compared(metric: str, a: int, b: int) -> None:
    """As of fixed answers at fixed prices, and of users who all give the same."""
    evaluator = constant(100, 100, primary_metric=metric)
    for arm, value in enumerate((a, b)):
        tables = evaluator.totals.buckets[5000]
        count, total = (f"{metric}_n", "cost_ln" if metric == "cost" else "score_micro")
        tables[count][arm] = tables["n"][arm]
        tables[total][arm] = tables["n"][arm] * (round(1e6 * math.log(value)) if metric == "cost" else value)
    effect = primary_effect(evaluator)
    assert effect.hold is None
    assert effect.met
    assert effect.percent == pytest.approx(100.0 * (b / a - 1.0), rel=1e-3)
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < effect.percent < effect.high
