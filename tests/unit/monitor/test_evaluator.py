"""What the evidence shows, and what it never does."""

import json
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Outcome
from schemas.v1.windows import Cell, UnitEvidence, Window
from services.monitor.domain.evaluator import StateError, TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.findings import Finding
from services.monitor.domain.verdict import finding_record
from tests.unit.monitor.synthetic import START_S, TEST, Arm, Traffic, experiment, stream, window

Messages = Iterable[tuple[int, int, Window]]


def run(evaluator: TestEvaluator, messages: Messages, ticker: Ticker | None = None) -> list[Finding]:
    ticker = ticker or Ticker(TEST)
    found = []
    for sequence, time_ms, message in messages:
        tick = ticker.add(sequence, time_ms, message)
        if tick is not None:
            found += evaluator.tick(tick)
    return found


def evidence(evaluator: TestEvaluator) -> dict[str, float]:
    return {check.name: check.log_e() for check in evaluator.checks}


def until_fired(traffic: Traffic, seconds: int, **fields: object) -> TestEvaluator:
    evaluator = TestEvaluator(experiment(share_bp=traffic.share_bp, **fields))
    ticker = Ticker(TEST)
    for message in stream(traffic, seconds):
        run(evaluator, [message], ticker)
        if evaluator.fired:
            break
    return evaluator


@pytest.mark.parametrize(("seed", "users"), [(1, 0), (2, 40)])
def test_identical_arms_stay(seed: int, users: int) -> None:
    traffic = Traffic(seed, per_second=12, users=users)
    evaluator = until_fired(traffic, 2500)
    assert evaluator.findings == []
    assert evaluator.ticks == 2499


def test_dead_canary_is_out_within_a_few_of_its_requests() -> None:
    needed = []
    for seed in range(5):
        traffic = Traffic(seed, per_second=1, share_bp=1000, b=Arm(errors=1.0))
        evaluator = until_fired(traffic, 2000)
        fired = evaluator.fired
        assert fired is not None
        assert fired.rule in {"error_rate_increase", "max_error_rate_percent"}
        assert fired.bad_units >= 3
        needed.append(fired.bad_units)
    assert max(needed) <= 10


def test_a_hung_canary_is_caught_by_age() -> None:
    evaluator = until_fired(Traffic(3, b=Arm(overdue=1.0), a=Arm(overdue=0.01)), 60)
    assert evaluator.fired is not None
    assert evaluator.fired.rule == "overdue_increase"


def test_a_canary_that_refuses_everything_is_caught() -> None:
    evaluator = until_fired(Traffic(4, b=Arm(client_errors=1.0, errors=0), a=Arm(client_errors=0.02)), 60)
    assert evaluator.fired is not None
    assert evaluator.fired.rule == "client_error_increase"


def test_fifteen_percent_errors_against_one() -> None:
    traffic = Traffic(5, share_bp=1000, b=Arm(errors=0.15))
    fired = until_fired(traffic, 120).fired
    assert fired is not None
    assert fired.kind == "rollback"
    assert sum(traffic.requests.values()) <= 1500
    assert fired.log_e >= fired.limit
    assert fired.value > fired.bound >= fired.threshold


def test_twice_the_latency() -> None:
    traffic = Traffic(6, share_bp=1000, b=Arm(median_ms=400))
    evaluator = until_fired(traffic, 120)
    fired = evaluator.fired
    assert fired is not None
    assert fired.rule in {"latency_increase", "ttft_increase"}
    assert fired.value > fired.bound == fired.threshold
    assert sum(traffic.requests.values()) <= 1500


def test_a_regression_within_the_margin_only_warns() -> None:
    evaluator = until_fired(Traffic(7, share_bp=5000, per_second=60, b=Arm(median_ms=225)), 400)
    assert evaluator.fired is None
    assert "latency_increase_warning" in {f.rule for f in evaluator.findings if f.kind == "warning"}


def test_mean_latency_above_an_absolute_limit() -> None:
    evaluator = until_fired(
        Traffic(8, per_second=20, share_bp=5000, a=Arm(median_ms=800), b=Arm(median_ms=1100)), 300,
        success_criteria={"max_latency_increase_percent": 90},
        thresholds={"critical_latency_ms": 1000, "warning_latency_ms": 990}, configured=["thresholds.critical_latency_ms"],
    )
    fired = evaluator.fired
    assert fired is not None
    assert fired.rule == "critical_latency_ms"
    assert fired.bound > 1000
    assert fired.value > fired.bound


def test_both_arms_bad_is_an_alert_not_a_rollback() -> None:
    bad = Arm(errors=0.3, median_ms=9000)
    evaluator = until_fired(Traffic(9, a=bad, b=bad), 300)
    assert evaluator.fired is None
    assert {f.rule for f in evaluator.findings if f.kind == "both_arms"} == {
        "both_arms_bad.errors", "both_arms_bad.latency",
    }


def test_both_arms_bad_rolls_back_where_the_policy_says_so() -> None:
    bad = Arm(errors=0.3)
    evaluator = until_fired(Traffic(9, a=bad, b=bad), 300, policies={"on_both_arms_bad": "rollback"})
    assert evaluator.fired is not None


def test_never_on_a_single_error() -> None:
    evaluator = TestEvaluator(experiment())
    traffic = Traffic(10, a=Arm(errors=0), b=Arm(errors=0), per_second=5)
    messages = list(stream(traffic, 50))
    for _, _, message in messages:
        for cell in message.cells:
            if cell.variant == "b":
                cell.outcomes[Outcome.ERROR_BEFORE_FIRST_TOKEN] = 1
                cell.units.first_errors = cell.units.first_errors_test = 1
                break
        else:
            continue
        break
    assert [f for f in run(evaluator, messages) if f.kind == "rollback"] == []


def test_one_abusive_unit_never_rolls_back() -> None:
    """Hundreds of errors of one user are one first error and one slow first request."""
    evaluator = TestEvaluator(experiment())
    traffic = Traffic(11, a=Arm(errors=0.01), b=Arm(errors=0.01), per_second=20)
    messages = list(stream(traffic, 300))
    for index, (_, _, message) in enumerate(messages[::2]):
        first = index == 5
        message.cells.append(
            Cell(
                test=TEST, variant="b", share_bp=2000, epoch=0, admitted=10, done=10,
                outcomes={Outcome.ERROR_BEFORE_FIRST_TOKEN: 10},
                units=UnitEvidence(new=first, first_errors=first, new_test=first, first_errors_test=first),
            )
        )
    run(evaluator, messages)
    assert evaluator.totals.of("b").errors > 2900
    assert evaluator.fired is None


def test_sample_ratio_mismatch_by_policy() -> None:
    def with_policy(policy: str) -> list[Finding]:
        evaluator = TestEvaluator(experiment(policies={"on_srm": policy}))
        traffic = Traffic(12, share_bp=2000)
        messages = list(stream(traffic, 100))
        for _, _, message in messages:
            for cell in message.cells:
                cell.share_bp = 4000
        run(evaluator, messages)
        return [f for f in evaluator.findings if f.rule == "sample_ratio_mismatch"]

    assert [f.kind for f in with_policy("hold")] == ["sample_ratio"]
    assert [f.kind for f in with_policy("rollback")] == ["rollback"]


@pytest.mark.parametrize(("policy", "kinds"), [("hold", []), ("alert", ["no_data"]), ("rollback", ["rollback"])])
def test_no_data_by_policy(policy: str, kinds: list[str]) -> None:
    evaluator = TestEvaluator(experiment(policies={"on_no_data": policy}, check_interval_seconds=10))
    run(evaluator, stream(Traffic(13), 5))
    run(evaluator, stream(Traffic(13, per_second=0), 80, start=5), Ticker(TEST))
    assert [f.kind for f in evaluator.findings if f.rule == "no_data"] == kinds


def test_a_late_regression_is_found_in_a_later_epoch() -> None:
    """500 sticky users have spent their first errors; an epoch lets them count afresh."""
    fields = {"duration_minutes": 20}
    evaluator = TestEvaluator(experiment(**fields))
    assert evaluator.levels.plan.count == 2
    ticker = Ticker(TEST)
    traffic = Traffic(14, users=500, per_second=30, epoch_seconds=600)
    run(evaluator, stream(traffic, 590), ticker)
    assert evaluator.findings == []
    traffic.b = Arm(errors=0.15)
    run(evaluator, stream(traffic, 300, start=590), ticker)
    assert evaluator.epoch == 1
    assert evaluator.fired is not None
    assert evaluator.fired.limit == pytest.approx(evaluator.levels.limit(1))


def test_late_cells_of_an_earlier_epoch_count_in_totals_only() -> None:
    evaluator = TestEvaluator(experiment())
    cell = Cell(test=TEST, variant="b", share_bp=2000, epoch=1, done=1, outcomes={Outcome.OK: 1})
    late = Cell(
        test=TEST, variant="b", share_bp=2000, epoch=0, done=5, outcomes={Outcome.TIMEOUT: 5},
        units=UnitEvidence(new=5, first_errors=5),
    )
    at = START_S * 1000
    run(evaluator, [(1, at, window([cell])), (2, at + 1000, window([late])), (3, at + 2000, window([]))])
    assert evaluator.totals.of("b").errors == 5
    assert evidence(evaluator)["error_rate_increase"] == pytest.approx(0, abs=1e-12)


def test_empty_windows_and_zero_share_change_nothing() -> None:
    evaluator = TestEvaluator(experiment())
    ticker = Ticker(TEST)
    run(evaluator, stream(Traffic(15, b=Arm(errors=0.05)), 60), ticker)
    run(evaluator, stream(Traffic(15, per_second=0), 1, start=60), ticker)
    before = evidence(evaluator)
    run(evaluator, stream(Traffic(15, per_second=0), 120, start=61), ticker)
    run(evaluator, stream(Traffic(16, share_bp=0, a=Arm(errors=0.2)), 20, start=181), ticker)
    assert evaluator.ticks == 200
    assert evidence(evaluator) == pytest.approx(before, abs=1e-9)


def test_checkpoints_at_any_tick_go_on_bit_for_bit() -> None:
    def messages() -> list[tuple[int, int, Window]]:
        return list(stream(Traffic(17, per_second=15, users=200, b=Arm(errors=0.03, median_ms=230)), 130))

    straight = TestEvaluator(experiment())
    run(straight, messages())
    broken, ticker = TestEvaluator(experiment()), Ticker(TEST)
    for message in messages():
        sequence = broken.sequence
        run(broken, [message], ticker)
        if broken.sequence != sequence and broken.ticks % 9 == 0:
            broken = TestEvaluator.from_dict(broken.experiment, json.loads(json.dumps(broken.to_dict())))
    assert evidence(broken) == evidence(straight)
    assert broken.to_dict() == straight.to_dict()


def test_a_foreign_checkpoint_is_refused() -> None:
    state = TestEvaluator(experiment()).to_dict()
    with pytest.raises(StateError):
        TestEvaluator.from_dict(experiment(test_id="other"), state)
    with pytest.raises(StateError):
        TestEvaluator.from_dict(experiment(thresholds={"warning_error_rate": 4.0}), state)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_redelivered_windows_are_ignored(data: st.DataObject) -> None:
    messages = list(stream(Traffic(18, per_second=10, b=Arm(errors=0.1)), 40))
    straight, again = TestEvaluator(experiment()), TestEvaluator(experiment())
    run(straight, messages)
    ticker, position = Ticker(TEST), 0
    while position < len(messages):
        back = data.draw(st.integers(0, position))
        run(again, messages[back : position + 1], ticker)
        position += 1
    assert again.to_dict() == straight.to_dict()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_counts_make_a_nan(data: st.DataObject) -> None:
    counts = st.integers(0, 10**9)
    bins = st.dictionaries(st.integers(0, 1500), st.integers(0, 10**6), max_size=5)
    evaluator = TestEvaluator(experiment())
    ticker = Ticker(TEST)
    for second in range(4):
        cells = []
        for variant in "ab":
            bad, good = data.draw(counts), data.draw(counts)
            cells.append(
                Cell(
                    test=TEST, variant=variant, share_bp=data.draw(st.sampled_from([0, 1, 100, 5000, 9999, 10_000])),
                    done=bad + good, outcomes={Outcome.TIMEOUT: bad},
                    units=UnitEvidence(
                        new=data.draw(counts), first_errors=bad, first_client_errors=data.draw(counts),
                        first_overdue=data.draw(counts), new_test=data.draw(counts),
                        first_errors_test=bad, latency_bins=data.draw(bins),
                        ttft_bins=data.draw(bins), itl_bins=data.draw(bins),
                    ),
                )
            )
        run(evaluator, [(second + 1, (START_S + second) * 1000, window(cells))], ticker)
    assert evaluator.exceptions == []
    assert all(value == value for value in evidence(evaluator).values())
    evaluator.statuses()
    assert evaluator.exceptions == []


def test_a_bug_in_a_check_is_not_a_bad_model(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = TestEvaluator(experiment(check_interval_seconds=4))
    broken = next(check for check in evaluator.checks if check.name == "ttft_increase")

    def fail(*_: object) -> None:
        raise ValueError("no such bin")

    ticker = Ticker(TEST)
    monkeypatch.setattr(broken, "update", fail)
    found = run(evaluator, stream(Traffic(19), 8), ticker)
    assert [(f.kind, f.rule) for f in found] == [("check_failing", "ttft_increase")]
    assert "no such bin" in found[0].text
    assert evaluator.health.consecutive == 7
    assert evaluator.totals.requests() > 200
    monkeypatch.undo()
    found = run(evaluator, stream(Traffic(19), 3, start=8), ticker)
    assert [f.kind for f in found] == ["check_recovered"]
    monkeypatch.setattr(broken, "update", fail)
    found = run(evaluator, stream(Traffic(19), 30, start=11), ticker)
    assert [(f.kind, f.rule, f.number) for f in found] == [
        ("check_failing", "ttft_increase", 2), ("rollback", "monitoring_failure", 1),
    ]
    assert "not shown to be bad" in found[1].text
    assert finding_record(evaluator, found[1]).rule == "monitoring_failure"


def test_monitoring_failure_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = TestEvaluator(experiment(check_interval_seconds=1, policies={"on_monitor_down": "hold"}))
    monkeypatch.setattr(evaluator.checks[0], "log_e", lambda: float("nan"))
    run(evaluator, stream(Traffic(20), 30))
    assert evaluator.fired is None
    assert [f.kind for f in evaluator.findings] == ["check_failing"]


def test_named_limits_take_their_share_of_the_level() -> None:
    assert TestEvaluator(experiment()).levels.guardrails == 8
    named = experiment(configured=["failure_criteria.max_error_rate_percent", "monitoring.thresholds.critical_error_rate"])
    assert TestEvaluator(named).levels.guardrails == 9
    wide = experiment(success_criteria={"max_error_rate_increase_percent": 1000, "max_latency_increase_percent": 500})
    assert {c.name for c in TestEvaluator(wide).checks if c.name.startswith("performance")} == {
        "performance_degradation_errors", "performance_degradation_latency",
    }


def test_the_record_of_a_rollback_says_everything() -> None:
    evaluator = until_fired(Traffic(21, b=Arm(errors=0.5)), 60)
    fired = evaluator.fired
    assert fired is not None
    record = finding_record(evaluator, fired)
    assert record.tick == fired.tick
    assert record.log_e == fired.log_e
    assert record.split_bp == 2000
    assert record.digests == {"a": "sha256:a", "b": "sha256:b"}
    assert record.config_hash == "sha256:c"
    assert record.details["windows_seq"] == evaluator.sequence
    assert record.rule in record.reason
    assert "%" in record.reason
