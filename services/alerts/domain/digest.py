"""What was held back by a destination's rate limit or gathered for it, as one message."""

import hashlib
from collections.abc import Iterable

from schemas.v1.alerts import Alert
from services.alerts.domain.incident import rank
from services.alerts.domain.wording import headline

GROUP = "group."
"""Ids of messages for several alerts begin so."""
_SHOWN = 20


def group_id(event_ids: Iterable[str]) -> str:
    """The id of the message for these alerts, whatever their order."""
    return f"{GROUP}{hashlib.sha256(chr(10).join(sorted(event_ids)).encode()).hexdigest()[:32]}"


def digest(alerts: list[Alert]) -> Alert:
    """One alert for several, of the highest level among them; a single one is itself."""
    if len(alerts) == 1:
        return alerts[0]
    worst = max(alerts, key=lambda alert: rank(alert.level))
    lines = [headline(alert) for alert in alerts[:_SHOWN]]
    if len(alerts) > _SHOWN:
        lines.append(f"and {len(alerts) - _SHOWN} more")
    tests = {alert.test_id for alert in alerts}
    return Alert(
        incident=f"{GROUP}{alerts[0].incident}",
        level=worst.level,
        title=f"{worst.title} (one of {len(alerts)} alerts)",
        message="\n".join(lines),
        test_id=tests.pop() if len(tests) == 1 else None,
        at_ms=max(alert.at_ms for alert in alerts),
        resolved=all(alert.resolved for alert in alerts),
        numbers={"alerts": len(alerts)},
    )
