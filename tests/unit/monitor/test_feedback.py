"""Thumbs as a guardrail, and what users say as the primary metric of a promotion."""

from collections.abc import Iterator

import numpy as np
import pytest

from schemas.feedback import UNITS_DOWN
from schemas.v1.common import Decision
from schemas.v1.windows import Bucket, Cell, Window
from services.monitor.domain import verdict
from services.monitor.domain.effects import primary_effect
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.guardrails import build
from services.monitor.domain.promotion import conditions
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream

LIMITS = {"failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90}}


class Opinions:
    """Adds feedback to cells: each done request answers with probability ``asked``, as a unit of its own."""

    def __init__(self, seed: int, up: dict[str, float], asked: float = 0.3) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.up = up
        self.asked = asked

    def add(self, cell: Cell) -> None:
        sums: dict[str, int] = {}
        for index in list(cell.buckets):
            bucket = cell.buckets[index]
            for _ in range(int(self.rng.binomial(bucket.n, self.asked))):
                self._answer(bucket, sums, up=bool(self.rng.random() < self.up[cell.variant]))
        cell.feedback = sums

    def _answer(self, bucket: Bucket, sums: dict[str, int], *, up: bool) -> None:
        bucket.thumbs_n += 1
        bucket.thumbs_up += up
        bucket.conversion_n += 1
        bucket.conversions += up
        bucket.score_n += 1
        bucket.score_micro += 5_000_000 if up else 2_000_000
        for name in ("thumbs_up", "converted") if up else ("thumbs_down", "not_converted", UNITS_DOWN):
            sums[name] = sums.get(name, 0) + 1


def said(traffic: Traffic, opinions: Opinions, seconds: int) -> Iterator[tuple[int, int, Window]]:
    for sequence, at_ms, window in stream(traffic, seconds):
        for cell in window.cells:
            opinions.add(cell)
        yield sequence, at_ms, window


def evaluated(up: dict[str, float], seconds: int, seed: int = 1, restore: int | None = None, **fields: object) -> TestEvaluator:
    traffic = Traffic(seed, share_bp=5000, per_second=60, a=Arm(errors=0.2, median_ms=300), b=Arm(errors=0.1, median_ms=250))
    test = experiment(share_bp=5000, **{**LIMITS, **fields})
    evaluator = TestEvaluator(test)
    ticker = Ticker(TEST)
    for message in said(traffic, Opinions(seed, up), seconds):
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
            if restore == evaluator.ticks:
                evaluator = TestEvaluator.from_dict(test, evaluator.to_dict())
    tick = ticker.open_tick()
    assert tick is not None
    evaluator.tick(tick)
    return evaluator


def test_thumbs_are_a_guardrail_only_when_asked_for_at_the_start() -> None:
    checks, levels = build(experiment())
    with_thumbs, tighter = build(experiment(primary_metric="thumbs"))
    new = {check.name for check in with_thumbs} - {check.name for check in checks}
    assert new == {"thumbs_down_increase", "thumbs_down_increase_warning"}
    assert tighter.guardrails == levels.guardrails + 1
    assert tighter.limit(0) > levels.limit(0)
    assert build(experiment(primary_metric="conversion"))[1].guardrails == levels.guardrails


def test_a_canary_that_users_dislike_is_rolled_back_and_the_record_says_why() -> None:
    evaluator = evaluated({"a": 0.9, "b": 0.3}, 120, primary_metric="thumbs")
    record = verdict.decide(evaluator)
    assert (record.decision, record.rule) == (Decision.ROLLBACK, "thumbs_down_increase")
    assert "thumbs-down" in record.reason
    assert record.log_e is not None
    assert record.log_e >= record.details["limit"]
    assert evaluated({"a": 0.9, "b": 0.3}, 120).fired is None


@pytest.mark.parametrize("seed", range(5))
def test_equal_arms_stay(seed: int) -> None:
    assert evaluated({"a": 0.6, "b": 0.6}, 90, seed, primary_metric="thumbs").fired is None


@pytest.mark.parametrize("metric", ["thumbs", "conversion", "score"])
def test_a_canary_that_users_like_better_is_promoted(metric: str) -> None:
    evaluator = evaluated({"a": 0.4, "b": 0.7}, 150, primary_metric=metric)
    record = verdict.decide(evaluator)
    assert record.decision is Decision.PROMOTE_B, record.reason
    effect = primary_effect(evaluator)
    expected = 25.0 if metric == "score" else 75.0
    assert effect.percent == pytest.approx(expected, abs=16)
    assert effect.low is not None
    assert effect.high is not None
    assert effect.low < effect.percent < effect.high
    assert record.threshold == 5.0
    assert record.bound == effect.low
    assert f"{metric} is +" in record.reason


def test_equal_arms_are_shown_not_to_improve_and_few_answers_wait() -> None:
    same = verdict.decide(
        evaluated({"a": 0.5, "b": 0.5}, 240, primary_metric="thumbs", success_criteria={"min_improvement_threshold": 40})
    )
    assert (same.decision, same.rule) == (Decision.KEEP_A, "no_improvement")
    few = evaluated({"a": 0.5, "b": 0.5}, 2, primary_metric="conversion")
    (condition,) = [c for c in conditions(few) if c.name == "primary_metric"]
    assert not condition.met
    assert "at least 20" in condition.text
    assert condition.needs_requests is not None
    assert condition.needs_requests > 0


def test_a_checkpoint_goes_on_bit_for_bit() -> None:
    whole = evaluated({"a": 0.5, "b": 0.45}, 40, primary_metric="thumbs")
    cut = evaluated({"a": 0.5, "b": 0.45}, 40, restore=17, primary_metric="thumbs")
    assert cut.to_dict() == whole.to_dict()
    figures = whole.totals.summaries()["b"]
    assert figures.thumbs_up + figures.thumbs_down > 100
    assert figures.thumbs_up_rate == pytest.approx(45, abs=8)
