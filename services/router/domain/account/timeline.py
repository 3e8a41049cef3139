"""The time line of a test: every change of its state and every alert, newest first."""

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.v1.common import unix_ms
from schemas.v1.record import TestChange
from services.router.domain.account.shapes import Occurrence
from services.router.domain.account.words import change, level, plain

_SOON_MS = 10_000


def timeline(changes: Iterable[TestChange], alerts: Iterable[Mapping[str, Any]]) -> list[Occurrence]:
    """Changes and alerts; an alert that only tells of a change beside it is left out."""
    happened = [_change(one) for one in changes]
    told = [_alert(alert) for alert in alerts]
    kinds = [(one.kind, one.at_ms) for one in happened]
    told = [one for one in told if one.tone != "plain" or not _repeats(one, kinds)]
    return sorted([*happened, *told], key=lambda one: one.at_ms, reverse=True)


def _change(one: TestChange) -> Occurrence:
    title, tone = change(one.kind)
    return Occurrence(
        id=one.id, at_ms=one.at_ms, kind=one.kind, title=title, tone=tone, by=one.actor,
        text=plain(one.reason or one.rule or ""), split_percent=None if one.share_bp is None else one.share_bp / 100,
    )  # fmt: skip


def _alert(alert: Mapping[str, Any]) -> Occurrence:
    name, incident = str(alert.get("level") or "INFO"), str(alert.get("incident") or "")
    resolved = " (over)" if alert.get("resolved") else ""
    title = plain(str(alert.get("title") or "alert")).removesuffix(".")
    return Occurrence(
        id=str(alert.get("id") or incident), at_ms=_at(alert), kind=f"alert.{incident.rsplit('.', 1)[-1]}",
        title=f"{name.capitalize()}: {title}{resolved}",
        tone="plain" if resolved else level(name), text=plain(str(alert.get("message") or "")), by="alert",
    )  # fmt: skip


def _at(alert: Mapping[str, Any]) -> int:
    try:
        return unix_ms(str(alert.get("time")))
    except ValueError:
        return int(alert.get("at_ms") or 0)


def _repeats(alert: Occurrence, kinds: list[tuple[str, int]]) -> bool:
    kind = alert.kind.removeprefix("alert.")
    return any(kind == known and abs(at - alert.at_ms) < _SOON_MS for known, at in kinds)
