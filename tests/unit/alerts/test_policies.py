"""Backoff, derived alerts, history and settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, Decision, TestStatus
from schemas.v1.events import MonitoringChanged, TestEvent
from schemas.v1.experiment import RollbackOrder, VerdictRecord
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings
from services.alerts.domain.backoff import RetryPolicy, delay_s, exhausted
from services.alerts.domain.derive import alert_of_monitoring, alert_of_test
from services.alerts.domain.history import History
from services.alerts.settings import read


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_grow_up_to_the_cap_and_are_spread_over_half_of_it(attempt: int, jitter: float) -> None:
    policy = RetryPolicy()
    delay = delay_s(policy, attempt, jitter)
    assert policy.first_s / 2 <= delay <= policy.cap_s
    assert delay_s(policy, attempt + 1, jitter) >= delay
    assert delay_s(policy, attempt, jitter, 17.0) == max(delay, 17.0)


def test_what_a_destination_asks_for_is_bounded_and_the_limit_is_the_last_attempt() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert delay_s(policy, 1, 0, 1e9) == 3600
    assert [exhausted(policy, attempt) for attempt in (1, 2, 3, 4)] == [False, False, True, True]


def test_the_default_policy_tries_for_about_an_hour() -> None:
    policy = RetryPolicy()
    total = sum(delay_s(policy, attempt, 0.5) for attempt in range(1, policy.max_attempts))
    assert 30 * 60 < total < 90 * 60


def event(**fields: object) -> TestEvent:
    return TestEvent.model_validate(
        {"test_id": "t1", "version": 3, "status": TestStatus.RUNNING, "model_a": "stable", "model_b": "canary",
         "share_bp": 1250, "at_ms": 1, **fields}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "level", "incident"),
    [
        ("test.started", AlertLevel.INFO, "t1.started"),
        ("test.completed", AlertLevel.INFO, "t1.completed"),
        ("test.failed", AlertLevel.CRITICAL, "t1.failed"),
        ("test.rolled_back", AlertLevel.EMERGENCY, "t1.rollback"),
        ("test.split_changed", AlertLevel.INFO, "t1.split_changed.3"),
        ("test.paused", AlertLevel.INFO, "t1.paused.3"),
        ("test.ramped", AlertLevel.INFO, "t1.ramped.3"),
        ("test.approved", AlertLevel.INFO, "t1.approved.3"),
        ("test.stepped_down", AlertLevel.INFO, "t1.stepped_down.3"),
        ("test.retried", AlertLevel.INFO, "t1.retried.3"),
        ("test.rolling_back", AlertLevel.WARNING, "t1.rolling_back.3"),
    ],
)
def test_events_of_a_test_are_alerts(kind: str, level: AlertLevel, incident: str) -> None:
    alert = alert_of_test(kind, event())
    assert alert is not None
    assert (alert.level, alert.incident, alert.test_id) == (level, incident, "t1")
    assert "canary" in alert.message
    assert alert.numbers == {"split_percent": 12.5}
    tagged = alert_of_test(kind, event(tags={"team": "ml", "model_b": "a tag of that name"}))
    assert tagged is not None
    assert tagged.tags == {"team": "ml", "model_a": "stable", "model_b": "canary"}


def test_a_step_down_tells_the_rule_and_the_figures_behind_it() -> None:
    verdict = VerdictRecord(decision=Decision.ROLLBACK, reason="slow", rule="ttft", at_ms=1, value=30, n_a=9, n_b=4, log_e=8)
    order = RollbackOrder(rule="ttft", reason="slow", actor="monitor", at_ms=1, verdict=verdict)
    alert = alert_of_test("test.stepped_down", event(order=order, actor="monitor", reason="to 5 %, no retry is left: slow"))
    assert alert is not None
    assert (alert.rule, alert.value, alert.n) == ("ttft", 30, 4)
    assert alert.message == "canary against stable at 12.5 %: to 5 %, no retry is left: slow"
    assert alert.numbers == {"split_percent": 12.5, "n_a": 9, "n_b": 4, "log_e": 8}


def test_events_of_no_interest_are_not() -> None:
    assert alert_of_test("test.renamed", event()) is None


def test_a_rollback_by_a_person_is_no_emergency() -> None:
    order = RollbackOrder(rule="operator", reason="looks odd", actor="ops", at_ms=1)
    alert = alert_of_test("test.rolled_back", event(order=order))
    assert alert is not None
    assert alert.level is AlertLevel.WARNING
    assert alert.incident != "t1.rollback"
    assert "looks odd" in alert.message


def test_monitoring_switched_off_is_a_warning() -> None:
    changed = MonitoringChanged(active=False, check_interval_seconds=30, actor="ops", at_ms=1)
    assert alert_of_monitoring("m.1", changed).level is AlertLevel.WARNING
    assert alert_of_monitoring("m.2", changed.model_copy(update={"active": True})).level is AlertLevel.INFO


def raised(number: int, level: AlertLevel = AlertLevel.CRITICAL) -> Alert:
    return Alert(incident=f"i{number}", level=level, title=str(number), message="", at_ms=number)


def test_the_history_keeps_the_newest_and_forgets_no_open_incident() -> None:
    history = History(3)
    for number in range(10):
        history.add(number, f"e{number}", raised(number))
    items, total = history.newest(2)
    assert [item.alert.title for item in items] == ["9", "8"]
    assert total == 3
    history.add(11, "again", raised(0))
    assert history.newest(9)[0][0].alert.title == "9"
    assert history.known(raised(0))
    assert not history.known(raised(0, AlertLevel.EMERGENCY))


def settings(*destinations: dict[str, object]) -> Settings:
    return Settings.model_validate({"alerts": {"destinations": list(destinations)}})


def test_without_destinations_alerts_go_to_the_log() -> None:
    assert [(channel.name, channel.type) for channel in read(settings(), {}).channels] == [("log", "log")]


def test_channels_get_names_of_their_own_and_urls_from_the_environment() -> None:
    slack = {"type": "slack", "webhook_url_env": "HOOK"}
    channels = read(settings(slack, slack, {"type": "log", "name": "x"}), {"HOOK": "https://h/secret"}).channels
    assert [channel.name for channel in channels] == ["slack", "slack-2", "x"]
    assert channels[0].secrets["webhook_url"] == "https://h/secret"
    assert "h/secret" not in repr(channels)


@pytest.mark.parametrize(
    ("destinations", "words"),
    [
        ([{"type": "slack", "webhook_url_env": "HOOK"}], ("alerts.destinations.0.webhook_url_env", "HOOK")),
        ([{"type": "slack", "webhook_url": "hooks.slack.com/x"}], ("alerts.destinations.0.webhook_url", "https://")),
        ([{"type": "log", "name": "x"}, {"type": "log", "name": "x"}], ("alerts.destinations.1.name", "'x'")),
    ],
)
def test_refusals_name_the_key_and_the_remedy(destinations: list[dict[str, object]], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(settings(*destinations), {})
    assert all(word in str(caught.value) for word in words)
    assert "hooks.slack.com" not in str(caught.value)
