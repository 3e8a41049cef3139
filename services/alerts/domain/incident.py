"""When an alert is a notification: once for each incident and rise of its level, at each destination.

Pure. The state of an incident at one destination is stored by compare-and-set, so that replicas and restarts
take the same decision once.
"""

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, UnixMs

LEVELS = tuple(AlertLevel)
"""Mildest first."""


class Status(StrEnum):
    """Where a notification stands."""

    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    SUPPRESSED = "suppressed"


class Notice(BaseModel):
    """One notification of an incident: the event that claimed it and what became of it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    event_id: str
    status: Status
    at_ms: UnixMs


class IncidentState(BaseModel):
    """What one destination was told of one incident.

    ``notices`` are those since the incident was last resolved, by level; ``closed_sequence`` is the place in
    ALERTS of its last resolution, before which nothing is news any more.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    incident: str
    notices: dict[AlertLevel, Notice] = Field(default_factory=dict)
    closed_sequence: int = 0
    resolution: Notice | None = None


@dataclass(frozen=True)
class Send:
    """Deliver, after ``state`` has been stored."""

    state: IncidentState


@dataclass(frozen=True)
class Skip:
    """Do not deliver, for a reason in words; ``state`` is to be stored where it is not None. ``delivered``: this very
    event was, and who delivered it died before that was on record.
    """

    reason: str
    state: IncidentState | None = None
    delivered: bool = False


def rank(level: AlertLevel) -> int:
    """0 for the mildest."""
    return LEVELS.index(level)


def incident_key(alert: Alert) -> str:
    """The incident for deduplication.

    An emergency of a test means its rollback, whoever reports it: the monitor's verdict, a router that misses
    the monitor, or the event of the rollback itself. They are one incident.
    """
    if alert.test_id and alert.level is AlertLevel.EMERGENCY:
        return f"{alert.test_id}.rollback"
    return alert.incident


def decide(
    state: IncidentState | None,
    alert: Alert,
    event_id: str,
    sequence: int,
    min_level: AlertLevel,
    now_ms: int,
    repeat_ms: int | None = None,
) -> Send | Skip:
    """Whether this event is a notification.

    ``sequence`` is the event's place in ALERTS. An event that has claimed its notification and was not delivered
    is sent again; a resolution goes where the incident was told, whatever the level. With ``repeat_ms`` an incident
    that is raised again that long after it was last told is told again.
    """
    known = state or IncidentState(incident=incident_key(alert))
    if alert.resolved:
        return _resolve(known, event_id, sequence, now_ms)
    if sequence <= known.closed_sequence:
        return Skip("the incident was resolved before this could be delivered")
    if rank(alert.level) < rank(min_level):
        return Skip(f"below the destination's min_level {min_level}")
    told = [level for level, notice in known.notices.items() if _counts(notice, event_id, now_ms, repeat_ms)]
    highest = max(told, key=rank, default=None)
    if highest is not None and rank(highest) >= rank(alert.level):
        return Skip(f"the incident is already known here at level {highest}")
    own = known.notices.get(alert.level)
    if own is not None and own.event_id == event_id and own.status is Status.SENT:
        return Skip("already delivered", delivered=True)
    notices = {**known.notices, alert.level: Notice(event_id=event_id, status=Status.SENDING, at_ms=now_ms)}
    return Send(known.model_copy(update={"notices": notices}))


def _counts(notice: Notice, event_id: str, now_ms: int, repeat_ms: int | None) -> bool:
    if notice.event_id == event_id or notice.status is Status.FAILED:
        return False
    # What is still being delivered is news enough, however old it is.
    return repeat_ms is None or notice.status is Status.SENDING or now_ms - notice.at_ms < repeat_ms


def _resolve(known: IncidentState, event_id: str, sequence: int, now_ms: int) -> Send | Skip:
    own = known.resolution
    if own is not None and own.event_id == event_id:
        if own.status is not Status.SENT:  # cut off, or given up and sent back from the dead letters
            return Send(known)
        return Skip("already delivered", delivered=True)
    if sequence <= known.closed_sequence:
        return Skip("the incident was resolved by a later event")
    told = any(notice.status in {Status.SENT, Status.SENDING} for notice in known.notices.values())
    closed: dict[str, object] = {"notices": {}, "closed_sequence": sequence}
    if not told:
        return Skip("nothing to resolve here", known.model_copy(update=closed))
    notice = Notice(event_id=event_id, status=Status.SENDING, at_ms=now_ms)
    return Send(known.model_copy(update={**closed, "resolution": notice}))


def finish(state: IncidentState, event_id: str, status: Status, now_ms: int) -> IncidentState:
    """The state after this event's notification was delivered or given up; unchanged when it is not there any more."""
    done = Notice(event_id=event_id, status=status, at_ms=now_ms)
    if state.resolution is not None and state.resolution.event_id == event_id:
        return state.model_copy(update={"resolution": done})
    notices = {level: done if notice.event_id == event_id else notice for level, notice in state.notices.items()}
    return state.model_copy(update={"notices": notices})
