"""One notification for each incident and rise of its level."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.domain.history import History
from services.alerts.domain.incident import (
    IncidentState,
    Send,
    Skip,
    Status,
    decide,
    finish,
    incident_key,
    rank,
)

INFO, WARNING, CRITICAL, EMERGENCY = AlertLevel


def alert(level: AlertLevel = CRITICAL, *, resolved: bool = False, incident: str = "disk", **fields: object) -> Alert:
    return Alert.model_validate(
        {"incident": incident, "level": level, "title": "t", "message": "m", "at_ms": 1, "resolved": resolved, **fields}
    )


def send(state: IncidentState | None, one: Alert, event_id: str, sequence: int, floor: AlertLevel = INFO) -> IncidentState:
    decision = decide(state, one, event_id, sequence, floor, 5)
    assert isinstance(decision, Send)
    return decision.state


def sent(state: IncidentState | None, one: Alert, event_id: str, sequence: int) -> IncidentState:
    return finish(send(state, one, event_id, sequence), event_id, Status.SENT, 6)


def reason(state: IncidentState | None, one: Alert, event_id: str, sequence: int, floor: AlertLevel = INFO) -> str:
    decision = decide(state, one, event_id, sequence, floor, 5)
    assert isinstance(decision, Skip)
    return decision.reason


def test_a_first_alert_is_sent_and_a_repeat_of_the_incident_is_not() -> None:
    state = sent(None, alert(), "e1", 1)
    assert "already known" in reason(state, alert(), "e2", 2)
    assert "already known" in reason(state, alert(WARNING), "e3", 3)


def test_a_rise_is_sent() -> None:
    state = sent(None, alert(WARNING), "e1", 1)
    state = sent(state, alert(CRITICAL), "e2", 2)
    assert "EMERGENCY" in reason(sent(state, alert(EMERGENCY), "e3", 3), alert(CRITICAL), "e4", 4)


def test_what_was_claimed_but_not_delivered_is_sent_again_by_the_same_event_only() -> None:
    claimed = send(None, alert(), "e1", 1)
    assert "already known" in reason(claimed, alert(), "e2", 2)
    assert isinstance(decide(claimed, alert(), "e1", 1, INFO, 9), Send)
    again = decide(finish(claimed, "e1", Status.SENT, 9), alert(), "e1", 1, INFO, 9)
    assert again == Skip("already delivered", delivered=True)


def test_after_a_delivery_was_given_up_the_next_event_of_the_incident_tries() -> None:
    state = finish(send(None, alert(), "e1", 1), "e1", Status.FAILED, 9)
    assert isinstance(decide(state, alert(), "e2", 2, INFO, 9), Send)


def test_below_min_level_is_not_sent_but_its_rise_is() -> None:
    assert "min_level" in reason(None, alert(WARNING), "e1", 1, CRITICAL)
    assert isinstance(decide(None, alert(CRITICAL), "e2", 2, CRITICAL, 1), Send)


def test_a_resolution_goes_where_the_incident_was_told_and_opens_it_for_the_next_time() -> None:
    assert reason(None, alert(INFO, resolved=True), "r0", 1) == "nothing to resolve here"
    state = sent(None, alert(CRITICAL), "e1", 2)
    state = send(state, alert(INFO, resolved=True), "r1", 3, CRITICAL)
    assert isinstance(decide(state, alert(INFO, resolved=True), "r1", 3, CRITICAL, 9), Send), "cut off: once more"
    state = finish(state, "r1", Status.SENT, 9)
    assert reason(state, alert(INFO, resolved=True), "r1", 3) == "already delivered"
    assert isinstance(decide(state, alert(CRITICAL), "e2", 4, INFO, 9), Send)


def test_an_alert_that_comes_after_its_resolution_was_handled_is_old_news() -> None:
    early = decide(None, alert(INFO, resolved=True), "r1", 7, INFO, 1)
    assert isinstance(early, Skip)
    assert early.state is not None
    assert "resolved before" in reason(early.state, alert(), "e1", 6)


def test_an_emergency_of_a_test_is_its_rollback_whoever_says_it() -> None:
    keys = {
        incident_key(alert(EMERGENCY, incident=incident, test_id="t1"))
        for incident in ("t1.rollback", "t1.rollback.critical_latency.1", "t1.monitor_down")
    }
    assert keys == {"t1.rollback"}
    assert incident_key(alert(CRITICAL, incident="x", test_id="t1")) == "x"
    assert incident_key(alert(EMERGENCY, incident="x")) == "x"


EVENTS = st.lists(st.tuples(st.sampled_from(list(AlertLevel)), st.booleans(), st.integers(0, 30)), max_size=40)


@given(EVENTS, st.lists(st.booleans(), min_size=40, max_size=40))
def test_retries_and_repeats_change_nothing_and_the_history_agrees(
    events: list[tuple[AlertLevel, bool, int]], again: list[bool]
) -> None:
    """Every event once or twice in a row (a redelivery): the notifications are the items of the history."""
    history, state, notified, done = History(1000), None, [], set()
    for sequence, ((level, resolved, number), twice) in enumerate(zip(events, again, strict=False), 1):
        one, event_id = alert(level, resolved=resolved), f"e{number}"
        history.add(sequence, event_id, one)
        if event_id in done:
            continue
        done.add(event_id)
        for _ in range(2 if twice else 1):
            decision = decide(state, one, event_id, sequence, INFO, sequence)
            if isinstance(decision, Send):
                state = finish(decision.state, event_id, Status.SENT, sequence)
                notified.append((event_id, level, resolved))
            elif decision.state is not None:
                state = decision.state
    shown = [(item.event_id, item.alert.level, item.alert.resolved) for item in history.items]
    assert notified == shown
    last = -1
    for _, level, resolved in notified:
        assert resolved or rank(level) > last
        last = -1 if resolved else rank(level)
