"""Status, results and history as callers see them."""

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import TestStatus
from schemas.v1.control import RampStatus, StatusReply
from schemas.v1.experiment import Experiment, RampStep, RollbackOrder, TestResult, VariantSummary
from services._runtime.settings_model import Settings
from services.router.control.config_view import MASK, masked
from services.router.domain import commands as c
from services.router.domain import views
from services.router.domain.experiment import apply


def result(n: int, version: int = 3, **fields: object) -> TestResult:
    return TestResult(
        test_id=f"t{n:03}",
        status=TestStatus.COMPLETED,
        end_time=f"2025-01-01T00:00:00.{n:03}Z",
        version=version,
        **fields,
    )


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(0, 20))
def test_history_is_the_same_wherever_the_newest_results_are_kept(n: int, lag: int, limit: int, offset: int) -> None:
    everything = [result(i) for i in range(n)]
    stored = everything[: max(0, n - lag)][::-1]
    held = everything[-20:]
    if lag > len(held):
        return
    page = stored[: offset + limit]
    tests, total = views.merge_history(held, page, len(stored), limit, offset)
    assert total == n
    assert tests == everything[::-1][offset : offset + limit]


def test_the_newer_version_of_a_result_wins_and_keeps_known_totals() -> None:
    summary = {"variant_b": VariantSummary(request_count=4)}
    (merged,), total = views.merge_history([result(1, 4)], [result(1, 3, metrics_summary=summary)], 1, 10, 0)
    assert total == 1
    assert merged.version == 4
    assert merged.metrics_summary == summary


def test_both_arms_are_shown_before_the_first_request_and_in_flight_ones_are_counted() -> None:
    complete = views.complete_totals({"b": VariantSummary(request_count=2, in_flight=1)}, {"a": 3, "b": 0})
    assert complete["variant_a"].in_flight == 3
    assert (complete["variant_b"].request_count, complete["variant_b"].in_flight) == (2, 1)


def test_status_counts_minutes_and_says_what_is_really_applied() -> None:
    test, _ = apply(None, c.Start("t", "m", "n", 1500, 60, "s", "ops"), 0)
    reply = views.status(test, 90_000, metrics=None, effective_bp=0, verdict=None, running=["t"], degraded=[])
    assert (reply.elapsed_minutes, reply.remaining_minutes) == (1.5, 58.5)
    assert (reply.traffic_split_percent, reply.effective_split_percent) == (15.0, 0.0)
    assert reply.degraded is None


def shown(test: Experiment, now_ms: int = 0, verdict: dict[str, Any] | None = None) -> StatusReply:
    return views.status(test, now_ms, metrics=None, effective_bp=0, verdict=verdict, running=["t"], degraded=[])


def test_status_tells_where_a_ramp_stands_and_what_it_waits_for() -> None:
    steps = tuple(RampStep(share_bp=bp, soak_minutes=2, min_requests=9, gate="manual") for bp in (150, 500))
    start = c.Start("t", "m", "n", 150, 60, "s", "ops", ramp=steps)
    test, _ = apply(None, start, 0)
    fresh = shown(test, 30_000)
    assert fresh.ramp == RampStatus(
        step=1, of=2, shares=[1.5, 5], soak_left_minutes=1.5, min_requests=9, gate="manual", approved=False
    )
    assert (fresh.waiting_for, fresh.retry_at) == (None, None)
    soaked = shown(test, 120_000)
    assert soaked.ramp is not None
    assert (soaked.ramp.soak_left_minutes, soaked.waiting_for) == (0, "an operator's approval: POST /v1/ab-testing/approve")
    outlook = {"ramp": {"due": "", "waits_for": "step 1 of 2 (1.5 %) waits: 3 of 9 requests"}}
    assert shown(test, 120_000, outlook).waiting_for == outlook["ramp"]["waits_for"]
    approved = shown(apply(test, c.Approve("t", "ops"), 120_000)[0], 120_000)
    assert approved.ramp is not None
    assert (approved.ramp.approved, approved.waiting_for) == (True, None)
    held = shown(apply(test, c.ChangeSplit("t", 300, "ops"), 0)[0], 120_000)
    assert held.ramp is not None
    assert (held.ramp.held, held.waiting_for) == ("the split was set by ops", None)
    for paused in (apply(test, c.Pause("t", "ops"), 0)[0], apply(None, dataclasses.replace(start, starts_ms=9), 0)[0]):
        found = shown(paused, 120_000).ramp
        assert found is not None
        assert found.soak_left_minutes == 2


def test_status_tells_of_a_step_down_when_it_is_taken_back_and_what_it_waits_for() -> None:
    test, _ = apply(None, c.Start("t", "m", "n", 2000, 60, "s", "ops"), 0)
    assert (shown(test).ramp, shown(test).retry_at) == (None, None)
    order = RollbackOrder(rule="ttft", reason="slow", actor="monitor", at_ms=0, decided_on=1)
    down, _ = apply(test, c.StepDown("t", order), 0)
    down, _ = apply(down, c.Wait("t", 2, "the queue of 'm' to empty"), 0)
    assert (shown(down).retry_at, shown(down).waiting_for) == ("1970-01-01T00:10:00.000Z", "the queue of 'm' to empty")
    assert shown(down, 0, {"ramp": {"waits_for": "the backoff"}}).waiting_for == "the queue of 'm' to empty"
    paused, _ = apply(down, c.Pause("t", "ops"), 0)
    assert shown(paused).waiting_for is None


def test_the_configuration_is_shown_without_its_secrets() -> None:
    settings = Settings.model_validate({
        "nats": {"servers": ["nats://user:hunter2@host:4222"], "password": "hunter2"},
        "clickhouse": {"dsn": "clickhouse://user:hunter2@host:8123/cypria"},
        "alerts": {"destinations": [{"type": "slack", "webhook_url": "https://hooks/hunter2"}]},
        "security": {"api_keys": [{"name": "a", "role": "admin", "key_sha256": "ab" * 32}]},
        "models": [{
            "name": "m", "engine": "openai", "base_url": "http://u:hunter2@host/v1", "api_key_env": "UPSTREAM",
            "engine_args": {"token": "hunter2", "max_model_len": 4},
        }],
    })  # fmt: skip
    shown = masked(settings)
    assert "hunter2" not in str(shown)
    assert "abab" not in str(shown)
    assert shown["nats"]["servers"] == [f"nats://{MASK}@host:4222"]
    assert shown["models"][0]["api_key_env"] == "UPSTREAM"
    assert shown["models"][0]["engine_args"]["max_model_len"] == 4
    assert shown["assignment"]["unit"][0] == "x_session_id"
    assert shown["ab_testing"]["max_test_duration_minutes"] == 1440


def test_an_ended_tests_throughput_is_over_all_of_its_time() -> None:
    summary = {"variant_a": VariantSummary(request_count=60, throughput_rps=0.0)}
    ended = result(1, start_time="2025-01-01T00:00:00.001Z", metrics_summary=summary)
    ended = ended.model_copy(update={"end_time": "2025-01-01T00:00:30.001Z"})
    assert views.over_its_life(ended).metrics_summary["variant_a"].throughput_rps == 2.0
    running = ended.model_copy(update={"end_time": None})
    assert views.over_its_life(running) == running


def test_what_has_seen_more_wins_callers_errors_included() -> None:
    early = {"variant_b": VariantSummary(request_count=4, in_flight=2)}
    late = {"variant_b": VariantSummary(request_count=4, client_errors=2)}
    assert views.latest(early, late) == views.latest(late, early) == late
