"""Steps down and pauses: how often they may be repeated, when, on what evidence, and when they become a rollback."""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from schemas.v1.common import TestStatus
from schemas.v1.windows import Window
from services.monitor.domain import alerts
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.findings import Finding
from services.monitor.domain.trials import LN_2, Trials
from services.monitor.domain.verdict import decide
from tests.unit.monitor.synthetic import START_S, TEST, Arm, Traffic, experiment, stream

LENIENT = {"failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90}}
BACKOFF_S = 30


def stepping(action: str = "step_down", max_retries: int = 2, **fields: Any) -> TestEvaluator:
    # Client errors too, which trigger 3 does not cover: what only pauses leaves trigger 3 in force.
    metric = "error_rate" if action == "step_down" else "client_error_rate"
    guardrails = [{"metric": metric, "margin_percent": 400, "action": action}]
    retry = {"max_retries": max_retries, "backoff_minutes": BACKOFF_S / 60}
    success = {"max_error_rate_increase_percent": 400}
    return TestEvaluator(
        experiment(guardrails=guardrails, retry=retry, success_criteria=success, policies={"on_srm": "warn"}, **LENIENT, **fields)
    )


def bad(seed: int, seconds: int, start: int = 0) -> Iterator[tuple[int, int, Window]]:
    return stream(Traffic(seed, a=Arm(errors=0.02), b=Arm(errors=0.6)), seconds, start)


def run(evaluator: TestEvaluator, messages: Iterator[tuple[int, int, Window]], *, cut: int = 0) -> list[Finding]:
    """Findings that act, in order; with ``cut``, by way of a checkpoint every so many ticks."""
    ticker = Ticker(TEST)
    found: list[Finding] = []
    for message in messages:
        tick = ticker.add(*message)
        if tick is not None:
            found += evaluator.tick(tick)
            if cut and evaluator.ticks % cut == 0:
                restored = TestEvaluator.from_dict(evaluator.experiment, json.loads(json.dumps(evaluator.to_dict())))
                evaluator.__dict__.update(restored.__dict__)
    return [finding for finding in found if finding.kind in {"rollback", "step_down", "pause"}]


def test_a_canary_that_stays_bad_is_stepped_down_tried_again_and_rolled_back() -> None:
    evaluator = stepping()
    found = run(evaluator, bad(1, 400))
    assert [(f.kind, f.rule, f.number) for f in found] == [
        ("step_down", "error_rate_increase", 1), ("step_down", "error_rate_increase", 2),
        ("rollback", "error_rate_increase", 1),
    ]  # fmt: skip
    assert len({f.key for f in found}) == 3
    first, second, last = found
    assert second.tick > first.tick + BACKOFF_S
    assert last.tick > second.tick + 2 * BACKOFF_S
    assert last.text.startswith("3rd failure after 2 retries: errors: ")
    assert decide(evaluator).reason.startswith("error_rate_increase: 3rd failure after 2 retries")
    assert all(f.log_e >= f.limit and f.bad_units >= 3 for f in found)
    assert all(f.value > f.bound >= f.threshold == 400 for f in found)


def test_a_repetition_needs_its_own_evidence_and_a_factor_more_each_time() -> None:
    evaluator = stepping()
    check = next(check for check in evaluator.checks if check.name == "error_rate_increase")
    level = evaluator.levels.limit(0, check.name)
    ticker, began = Ticker(TEST), []
    for message in bad(2, 300):
        tick = ticker.add(*message)
        armed = evaluator.trials["step_down"].armed(check.name)
        if tick is None:
            continue
        evaluator.tick(tick)
        if not armed and evaluator.trials["step_down"].armed(check.name):
            began.append((tick.second, check.log_e(), evaluator.limit(check)))
    first, second, last = (f for f in evaluator.findings if f.kind in {"step_down", "rollback"})
    assert first.limit == level
    assert [second_of for second_of, _, _ in began] == [first.tick + BACKOFF_S, second.tick + 2 * BACKOFF_S]
    for n, (later, (_, base, limit)) in enumerate(zip((second, last), began, strict=True), 1):
        assert limit == pytest.approx(level + n * LN_2 + base)
        assert later.limit == pytest.approx(limit)
        assert later.log_e - base >= level + n * LN_2


@pytest.mark.parametrize(("allowed", "steps_down", "words"), [
    (0, 1, "2nd failure after a step down without retry: "), (1, 1, "2nd failure after 1 retry: "),
    (3, 3, "4th failure after 3 retries: "),
])  # fmt: skip
def test_the_last_failure_rolls_back(allowed: int, steps_down: int, words: str) -> None:
    evaluator = stepping(max_retries=allowed)
    found = run(evaluator, bad(3, 60 + 70 * 2**steps_down))
    assert [f.kind for f in found] == ["step_down"] * steps_down + ["rollback"]
    assert found[-1].text.startswith(words)


def test_while_it_is_quiet_it_says_until_when() -> None:
    evaluator = stepping()
    found = run(evaluator, bad(4, 25))
    assert [f.kind for f in found] == ["step_down"]
    (status,) = [s for s in evaluator.statuses() if s.name == "error_rate_increase"]
    assert (status.times, status.quiet_until_ms) == (1, 1000 * (found[0].tick + BACKOFF_S))
    assert status.limit > status.log_e


def test_a_canary_that_is_good_again_is_left_alone() -> None:
    evaluator = stepping()
    found = run(evaluator, bad(5, 20))
    assert [f.kind for f in found] == ["step_down"]
    assert run(evaluator, stream(Traffic(5, a=Arm(errors=0.02), b=Arm(errors=0.02)), 300, start=20)) == []


def callers(seed: int, worse: float, seconds: int, start: int = 0) -> Iterator[tuple[int, int, Window]]:
    """Callers' errors, which no other guardrail here is about."""
    return stream(Traffic(seed, a=Arm(client_errors=0.02), b=Arm(client_errors=worse)), seconds, start)


def test_what_stays_bad_is_paused_once() -> None:
    evaluator = stepping("pause")
    found = run(evaluator, callers(6, 0.6, 90))
    assert [(f.kind, f.rule, f.number) for f in found] == [("pause", "client_error_increase", 1)]
    (status,) = [s for s in evaluator.statuses() if s.name == "client_error_increase"]
    assert (status.times, status.quiet_until_ms, status.fired) == (1, None, True)
    assert status.limit > status.log_e


@pytest.mark.parametrize("way", ["recovered", "resumed", "epoch"])
def test_a_pause_is_repeated_when_there_is_a_reason_to(way: str) -> None:
    evaluator = stepping("pause", duration_minutes=20)
    assert [f.number for f in run(evaluator, callers(7, 0.6, 30))] == [1]
    if way == "resumed":
        running = evaluator.experiment
        evaluator.experiment = running.model_copy(update={"status": TestStatus.PAUSED})
        assert run(evaluator, callers(7, 0.6, 30, start=30)) == []
        evaluator.experiment = running
        again = 60
    elif way == "recovered":
        assert run(evaluator, callers(7, 0.02, 40, start=30)) == []
        again = 70
    else:
        again = 600
    traffic = callers(7, 0.6, 30, start=again)
    if way == "epoch":
        traffic = stream(
            Traffic(7, epoch_seconds=600, a=Arm(client_errors=0.02), b=Arm(client_errors=0.6)), 30, start=again
        )
    (second,) = run(evaluator, traffic)
    assert (second.kind, second.number) == ("pause", 2)
    check = next(check for check in evaluator.checks if check.name == second.rule)
    base = second.limit - evaluator.levels.limit(second.epoch, check.name) - LN_2
    assert base == pytest.approx(0.0) if way == "epoch" else base > 1.0
    assert second.log_e >= second.limit


def test_while_a_test_is_paused_nothing_is_repeated_but_what_was_good_in_between() -> None:
    evaluator = stepping("pause", duration_minutes=20)
    assert len(run(evaluator, callers(8, 0.6, 30))) == 1
    evaluator.experiment = evaluator.experiment.model_copy(update={"status": TestStatus.PAUSED})
    traffic = Traffic(8, epoch_seconds=600, a=Arm(client_errors=0.02), b=Arm(client_errors=0.6))
    assert run(evaluator, stream(traffic, 40, start=600)) == []
    assert evaluator.epoch == 1


def test_each_guardrail_that_pauses_has_trials_of_its_own() -> None:
    guardrails = [
        {"metric": "client_error_rate", "margin_percent": 50, "action": "pause"},
        {"metric": "overdue", "margin_percent": 50, "action": "pause"},
    ]
    evaluator = TestEvaluator(experiment(guardrails=guardrails))
    assert [f.rule for f in run(evaluator, callers(9, 0.6, 20))] == ["client_error_increase"]
    late = Traffic(9, a=Arm(overdue=0.02), b=Arm(overdue=0.7))
    assert [(f.rule, f.number) for f in run(evaluator, stream(late, 30, start=20))] == [("overdue_increase", 1)]


def test_a_rollback_in_the_same_tick_goes_first() -> None:
    guardrails = [
        {"metric": "error_rate", "margin_percent": 50, "action": "step_down"},
        {"metric": "latency", "margin_percent": 20, "action": "pause"},
    ]
    evaluator = TestEvaluator(experiment(guardrails=guardrails))
    traffic = Traffic(7, share_bp=5000, per_second=600, a=Arm(errors=0.02), b=Arm(errors=1.0, median_ms=2000))
    found = run(evaluator, stream(traffic, 5))
    assert [f.kind for f in found] == ["rollback"]


@pytest.mark.parametrize("action", ["step_down", "pause"])
def test_checkpoints_at_any_tick_go_on_bit_for_bit(action: str) -> None:
    straight, broken = stepping(action), stepping(action)
    def messages() -> Iterator[tuple[int, int, Window]]:
        if action == "step_down":
            yield from bad(8, 120)
        for start, worse in ((0, 0.6), (25, 0.02), (60, 0.6)):
            yield from callers(8, worse, 35, start)

    whole = run(straight, messages())
    assert len(whole) > 1
    assert run(broken, messages(), cut=7) == whole
    assert broken.to_dict() == straight.to_dict()


def test_a_new_epoch_counts_from_nothing() -> None:
    evaluator = stepping(duration_minutes=20)
    run(evaluator, bad(9, 100))
    trials = evaluator.trials["step_down"]
    assert trials.count == 2
    run(evaluator, stream(Traffic(9, a=Arm(errors=0.02), b=Arm(errors=0.02), epoch_seconds=600), 5, start=600))
    assert evaluator.epoch == 1
    check = next(check for check in evaluator.checks if check.name == "error_rate_increase")
    assert evaluator.limit(check) == pytest.approx(evaluator.levels.limit(1, check.name) + 2 * LN_2)


def test_requests_at_a_share_count_afresh_after_a_step_down() -> None:
    evaluator = stepping()
    traffic = Traffic(10, share_bp=1000)
    run(evaluator, stream(traffic, 11))
    before = dict(evaluator.at_share[1000])
    assert sum(before.values()) == evaluator.totals.requests()
    found = run(evaluator, bad(10, 15, start=11))
    assert [f.kind for f in found] == ["step_down"]
    assert 1000 not in evaluator.at_share


def test_evidence_that_cannot_be_told_begins_a_trial_when_it_can() -> None:
    trials = Trials()
    trials.took(START_S, 10)
    assert not trials.armed("x")
    trials.begin(START_S + 9, "x", 3.0, 7.0, resumed=True)
    assert not trials.armed("x")
    trials.begin(START_S + 10, "x", math.inf, 7.0, resumed=False)
    assert not trials.armed("x")
    trials.begin(START_S + 11, "x", 2.0, 7.0, resumed=False)
    assert trials.limit("x", 7.0) == 7.0 + LN_2 + 2.0
    trials.start_epoch(START_S + 12, ["x", "y"], paused=False)
    assert trials.limit("x", 7.0) == trials.limit("y", 7.0) == 7.0 + LN_2


def test_false_repetitions_are_as_rare_as_their_level() -> None:
    """A fair bet of odds 1.5 to 0.5: whatever came before, trial n fires with chance level / 2**n at most."""
    rng, level, rounds = np.random.default_rng(1), 0.2, 4000
    began, fired = np.zeros(3), np.zeros(3)
    for _ in range(rounds):
        trials, log_e = Trials(), 0.0
        began[0] += 1
        for second, up in enumerate(rng.random(200) < 0.5):
            log_e += math.log(1.5 if up else 0.5)
            if log_e >= trials.limit("x", -math.log(level)):
                fired[trials.count] += 1
                if trials.count == 2:
                    break
                trials.took(second, 0)
                trials.begin(second, "x", log_e, 7.0, resumed=False)
                began[trials.count] += 1
    assert fired[0] > 0.5 * level * rounds  # the bet is no idle one
    for n in range(3):
        allowed = level / 2**n
        assert fired[n] <= began[n] * allowed + 3 * math.sqrt(began[n] * allowed) + 1


@pytest.mark.parametrize(("action", "level", "words"), [
    ("step_down", "WARNING", "is being reduced, retry 1 of 2 in 0.5 minutes"), ("pause", "CRITICAL", "POST /v1/ab-testing/resume"),
])  # fmt: skip
def test_alerts_say_what_is_done(action: str, level: str, words: str) -> None:
    evaluator = stepping(action)
    (found, *_) = run(evaluator, callers(11, 0.6, 20) if action == "pause" else bad(11, 20))
    test = evaluator.experiment
    alert = alerts.alert_of(test, found, monitoring_active=True)
    assert (alert.level, alert.rule) == (level, found.rule)
    assert words in alert.message
    assert alert.incident == f"{TEST}.{action}.{found.rule}.1"
    off = alerts.alert_of(test.model_copy(update={"auto_rollback": False}), found, monitoring_active=True)
    assert "auto_rollback is off" in off.message
    assert "monitoring is stopped" in alerts.alert_of(test, found, monitoring_active=False).message
