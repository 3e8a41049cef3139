"""The stable model alone, or both: told when it is bad, told when it is over, and never a reason to roll back."""

import json

import pytest

from schemas.v1.common import AlertLevel
from services.monitor.domain.alerts import alert_of
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.findings import Finding
from tests.unit.monitor.synthetic import TEST, Arm, Traffic, experiment, stream
from tests.unit.monitor.test_evaluator import run


class Story:
    """Traffic whose arms change, told to an evaluator that is restored from its checkpoint in between."""

    def __init__(self, seed: int, **traffic: object) -> None:
        self.traffic = Traffic(seed, **{"share_bp": 5000, "per_second": 20, **traffic})  # type: ignore[arg-type]
        self.evaluator, self.ticker, self.second = TestEvaluator(experiment(share_bp=5000)), Ticker(TEST), 0

    def on(self, seconds: int, a: Arm, b: Arm | None = None) -> list[Finding]:
        self.traffic.a, self.traffic.b = a, b or Arm()
        found = run(self.evaluator, stream(self.traffic, seconds, self.second), self.ticker)
        self.second += seconds
        state = json.loads(json.dumps(self.evaluator.to_dict()))
        self.evaluator = TestEvaluator.from_dict(self.evaluator.experiment, state)
        return [f for f in found if f.kind in {"stable_bad", "stable_recovered", "both_arms"}]


DEAD, SLOW, WELL = Arm(errors=0.9), Arm(median_ms=20_000), Arm()


@pytest.mark.parametrize(("bad", "family"), [(DEAD, "errors"), (SLOW, "latency")])
def test_a_stable_model_that_is_bad_alone_is_told_with_its_end_and_told_again_the_next_time(bad: Arm, family: str) -> None:
    story = Story(1)
    assert story.on(120, WELL) == []
    (first,) = story.on(20, bad)
    (over,) = story.on(120, WELL)
    (second,) = story.on(20, bad)
    assert [f.kind for f in (first, over, second)] == ["stable_bad", "stable_recovered", "stable_bad"]
    assert {f.rule for f in (first, over, second)} == {f"stable_bad.{family}"}
    assert (first.number, over.number, second.number) == (1, 1, 2)
    told = [alert_of(story.evaluator.experiment, f, monitoring_active=True) for f in (first, over, second)]
    assert [(one.level, one.resolved) for one in told] == [
        (AlertLevel.CRITICAL, False), (AlertLevel.INFO, True), (AlertLevel.CRITICAL, False),
    ]  # fmt: skip
    assert told[0].incident == told[1].incident != told[2].incident
    assert told[0].value is not None
    assert told[0].threshold is not None
    assert told[0].value > told[0].threshold
    assert story.evaluator.fired is None


def test_it_is_told_within_seconds_and_not_for_what_stays_within_the_limit() -> None:
    story = Story(2)
    assert story.on(10, DEAD)[0].tick - (story.evaluator.started_s) <= 3
    quiet = Story(3)
    assert quiet.on(240, Arm(errors=0.02, median_ms=400)) == []


def test_both_bad_is_one_story_with_one_end_for_each_word_of_it() -> None:
    story = Story(4)
    story.on(60, WELL)
    begun = story.on(60, DEAD, DEAD)
    assert {f.kind for f in begun} <= {"both_arms", "stable_bad"}
    assert "both_arms_bad.errors" in {f.rule for f in begun}
    over = story.on(180, WELL)
    assert {f.kind for f in over} == {"stable_recovered"}
    assert sorted(f.rule for f in over) == sorted(f.rule for f in begun)
    assert story.on(120, WELL) == [], "the epoch's evidence of the canary stays, and begins nothing new"
    assert story.evaluator.fired is None


def test_an_outage_without_a_request_is_not_the_end_of_it() -> None:
    story = Story(5)
    story.on(20, DEAD)
    story.traffic.per_second = 0.0
    assert story.on(200, WELL) == []
    story.traffic.per_second = 20.0
    assert [f.kind for f in story.on(30, WELL)] == ["stable_recovered"]


def test_little_traffic_is_enough() -> None:
    story = Story(6, per_second=0.2)
    assert story.on(300, WELL) == []
    assert [f.kind for f in story.on(300, DEAD)][:1] == ["stable_bad"]
    assert [f.kind for f in story.on(800, WELL)] == ["stable_recovered"]
