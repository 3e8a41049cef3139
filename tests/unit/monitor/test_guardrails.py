"""Which guardrails a test has, what each of them does, and its share of the level."""

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Decision, Outcome
from schemas.v1.experiment import Guardrail, GuardrailMetric
from schemas.v1.windows import OUTCOME_KINDS
from services.monitor.domain import verdict
from services.monitor.domain.checks import dollars
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick, Ticker
from services.monitor.domain.guardrails import RATES, VALUES, Levels, build
from services.monitor.domain.promotion import conditions
from services.monitor.domain.series import SeriesBuilder
from services.monitor.domain.statistics import EpochPlan, log_threshold
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream


def own(metric: str, margin: float = 50.0, action: str = "rollback", weight: float = 1.0) -> dict[str, Any]:
    return {"metric": metric, "margin_percent": margin, "action": action, "weight": weight}


def evaluated(traffic: Traffic, seconds: int, **fields: Any) -> TestEvaluator:
    """Up to the first finding that calls for an action, or to the end."""
    evaluator, ticker = TestEvaluator(experiment(share_bp=traffic.share_bp, **fields)), Ticker(TEST)
    for message in stream(traffic, seconds):
        tick = ticker.add(*message)
        if tick is not None and any(f.kind in {"rollback", "pause", "step_down"} for f in evaluator.tick(tick)):
            break
    return evaluator


def names(*guardrails: dict[str, Any], **fields: Any) -> dict[str, tuple[str, float]]:
    checks, _ = build(experiment(guardrails=list(guardrails), **fields))
    return {check.name: (check.action, check.threshold) for check in checks}


def test_every_metric_has_a_check() -> None:
    assert set(get_args(GuardrailMetric)) == set(RATES) | set(VALUES)
    assert {kind.value for kind in OUTCOME_KINDS} <= set(RATES)
    for metric in get_args(GuardrailMetric):
        assert any(name.endswith("_increase") and metric.split("_")[0] in name for name in names(own(metric)))


def test_an_own_guardrail_replaces_the_default_of_its_metric() -> None:
    before = names()
    after = names(own("latency", 35.0, "step_down"), own("error_rate", 0.0))
    assert set(before) - set(after) == {"error_rate_increase_warning"}
    assert after["latency_increase"] == ("step_down", 35.0)
    assert after["latency_increase_warning"] == ("warn", 0.0)
    assert after["error_rate_increase"] == ("rollback", 0.0)
    assert set(after) <= set(before)


@pytest.mark.parametrize(("action", "margin", "stands"), [
    ("rollback", 100.0, False), ("step_down", 100.0, False), ("step_down", 101.0, True), ("pause", 20.0, True),
    ("warn", 20.0, True),
])  # fmt: skip
def test_trigger_3_stands_where_nothing_tighter_takes_traffic_away(action: str, margin: float, stands: bool) -> None:
    assert ("performance_degradation_latency" in names(own("latency", margin, action))) is stands


def test_own_guardrails_are_added_with_their_warnings() -> None:
    added = set(names(own("cost"), own("empty", 100.0, "pause"), own("length", 10.0, "warn"))) - set(names())
    assert added == {
        "cost_increase", "cost_increase_warning", "empty_increase", "empty_increase_warning", "length_increase",
    }  # fmt: skip
    assert names(own("cost"), own("length", 10.0, "warn"))["length_increase"] == ("warn", 10.0)


def test_two_guardrails_of_one_metric_are_told_apart() -> None:
    found = names(own("latency", 20.0, "step_down"), own("latency", 80.0))
    assert found["latency_increase"] == ("step_down", 20.0)
    assert found["latency_increase_2"] == ("rollback", 80.0)
    assert "performance_degradation_latency" not in found


def test_equal_weights_have_the_levels_of_an_equal_split() -> None:
    for guardrails in ([], [own("cost"), own("empty")]):
        checks, levels = build(experiment(guardrails=guardrails))
        acting = sum(check.action != "warn" for check in checks)
        assert levels.guardrails == acting == 8 + len(guardrails)
        for epoch in range(30):
            weight = levels.plan.weight(min(epoch, levels.plan.count - 1))
            assert {levels.limit(epoch, check.name) for check in checks} == {log_threshold(0.01, acting, weight)}


def test_a_guardrail_that_only_warns_takes_no_share() -> None:
    _, plain = build(experiment())
    _, with_warning = build(experiment(guardrails=[own("cost", 10.0, "warn", weight=50.0)]))
    assert with_warning.weights == plain.weights
    assert with_warning.limit(0, "cost_increase") == plain.limit(0)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20), st.floats(1e-4, 0.2))
def test_shares_add_up_to_the_level(weights: list[float], alpha: float) -> None:
    levels = Levels(alpha, EpochPlan(86_400), {str(i): weight for i, weight in enumerate(weights)})
    shares = [levels.share(name) for name in levels.weights]
    assert math.fsum(shares) == pytest.approx(1.0)
    for name, share in zip(levels.weights, shares, strict=True):
        assert levels.limit(0, name) == pytest.approx(math.log(1.0 / (alpha * share * 0.5)))
    spent = [math.exp(-levels.limit(epoch, name)) for epoch in range(levels.plan.count) for name in levels.weights]
    assert math.fsum(spent) == pytest.approx(alpha)


def test_weight_buys_speed() -> None:
    _, levels = build(experiment(guardrails=[own("error_rate", 50.0, weight=8.0)]))
    assert levels.limit(0, "error_rate_increase") == pytest.approx(levels.limit(0, "overdue_increase") - math.log(8))


def empty_replies(seed: int) -> Traffic:
    return Traffic(seed, share_bp=5000, a=Arm(odd=0.02), b=Arm(odd=0.2))


@pytest.mark.parametrize("action", ["rollback", "step_down", "pause"])
def test_a_canary_with_empty_replies_is_caught_by_the_guardrail_on_them(action: str) -> None:
    assert evaluated(empty_replies(1), 60).findings == []
    evaluator = evaluated(empty_replies(1), 60, guardrails=[own("empty", 100.0, action)])
    (found,) = [f for f in evaluator.findings if f.kind == action]
    assert found.rule == "empty_increase"
    assert found.text.startswith("empty replies: ")
    assert found.value > found.bound >= found.threshold == 100.0
    assert found.bad_units >= 3


def test_one_user_with_a_habit_is_no_evidence() -> None:
    """Hundreds of empty replies to one unit are one first outcome."""
    evaluator, ticker = TestEvaluator(experiment(guardrails=[own("empty", 0.0)])), Ticker(TEST)
    for index, (sequence, at_ms, window) in enumerate(stream(Traffic(2, per_second=20), 60)):
        for cell in window.cells:
            if cell.variant == "b":
                cell.outcomes[Outcome.EMPTY] = 10
                cell.units.first_outcomes = {Outcome.EMPTY: 1} if index == 4 else {}
        tick = ticker.add(sequence, at_ms, window)
        if tick is not None:
            evaluator.tick(tick)
    assert evaluator.findings == []


def test_a_dearer_canary_is_told_in_dollars() -> None:
    traffic = Traffic(3, share_bp=5000, a=Arm(cost=1_200_000), b=Arm(cost=2_600_000))
    evaluator = evaluated(traffic, 120, guardrails=[own("cost", 50.0, "pause")])
    (found,) = [f for f in evaluator.findings if f.kind == "pause"]
    assert found.rule == "cost_increase"
    assert found.text.startswith("cost per request: median $0.002")
    assert "against $0.00119 over" in found.text
    assert found.value_a == pytest.approx(0.0012, rel=0.1)
    (status,) = [s for s in evaluator.statuses() if s.name == "cost_increase"]
    assert (status.unit, status.action, status.fired, status.times) == ("$", "pause", True, 1)
    assert evaluated(Traffic(3, share_bp=5000, a=Arm(cost=10**6), b=Arm(cost=10**6)), 60, guardrails=[own("cost", 0.0)]).findings == []


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "$0.00"), (3.14159, "$3.14"), (0.0123456, "$0.0123"), (1.234e-7, "$0.000000123")]
)
def test_amounts(value: float | None, text: str) -> None:
    assert dollars(value) == text


def test_a_guardrail_that_only_warns_only_warns_and_keeps_a() -> None:
    traffic = Traffic(4, share_bp=5000, per_second=60, b=Arm(median_ms=330))
    evaluator = evaluated(traffic, 60, guardrails=[own("latency", 25.0, "warn"), own("ttft", 25.0, "warn")])
    assert {f.kind for f in evaluator.findings} == {"warning"}
    assert "latency_increase" in {f.rule for f in evaluator.findings}
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.KEEP_A, evaluator.findings[0].rule)
    assert "beyond its guardrail's margin" in record.reason


def test_a_step_down_is_no_verdict_but_what_it_showed_is() -> None:
    evaluator = evaluated(empty_replies(5), 60, guardrails=[own("empty", 50.0, "step_down")])
    assert evaluator.fired is None
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.KEEP_A, "empty_increase")
    (quiet,) = [c for c in conditions(evaluator) if c.name == "guardrails"]
    assert not quiet.met
    assert quiet.text == "B was stepped down and has not been tried again"


def test_an_unequal_share_is_in_the_record_and_the_series() -> None:
    limits = {"failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90}}
    evaluator = evaluated(Traffic(6, b=Arm(errors=0.5)), 60, guardrails=[own("error_rate", 50.0, weight=9.0)], **limits)
    assert evaluator.fired is not None
    assert evaluator.fired.rule == "error_rate_increase"
    details = verdict.finding_record(evaluator, evaluator.fired).details
    assert details["guardrails"] == 8
    assert details["share"] == pytest.approx(9 / 16)
    assert details["limit"] == pytest.approx(-math.log(0.01 * 9 / 16 * 0.5))
    series = SeriesBuilder()
    series.add(evaluator, Tick(evaluator.second or 0, evaluator.sequence))
    limits_shown = series.build(evaluator).limits
    assert set(limits_shown) == set(evaluator.levels.weights)
    assert limits_shown["error_rate_increase"][0] == pytest.approx(details["limit"], rel=1e-5)


def cells(seconds: int) -> Iterator[Any]:
    ticker = Ticker(TEST)
    for message in stream(Traffic(7, b=Arm(errors=0.04, odd=0.05), a=Arm(odd=0.05)), seconds):
        tick = ticker.add(*message)
        if tick is not None:
            yield tick


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.builds(
            Guardrail, metric=st.sampled_from(get_args(GuardrailMetric)), margin_percent=st.floats(0, 10_000),
            action=st.sampled_from(["warn", "pause", "step_down", "rollback"]), weight=st.floats(0.01, 100),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_any_guardrails_make_checks_that_are_told_apart(guardrails: list[Guardrail]) -> None:
    evaluator = TestEvaluator(experiment(guardrails=[g.model_dump() for g in guardrails]))
    found = [check.name for check in evaluator.checks]
    assert len(found) == len(set(found))
    assert math.fsum(evaluator.levels.share(n) for n in evaluator.levels.weights) == pytest.approx(1.0)
    for tick in cells(6):
        evaluator.tick(tick)
    assert evaluator.exceptions == []
    again = TestEvaluator.from_dict(evaluator.experiment, evaluator.to_dict())
    assert again.to_dict() == evaluator.to_dict()
    assert all(math.isfinite(status.limit) for status in again.statuses())
