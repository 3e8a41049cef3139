"""An alert in words: Slack's Block Kit, and fields for the log."""

from typing import Any

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, rfc3339

_SIGNS = {
    AlertLevel.INFO: "\u2139\ufe0f",
    AlertLevel.WARNING: "\u26a0\ufe0f",
    AlertLevel.CRITICAL: "\U0001f534",
    AlertLevel.EMERGENCY: "\U0001f6a8",
}
_RESOLVED = "\u2705"
_HEADER = 150
_SECTION = 3000
_FIELD = 2000
_FIELDS = 10
"""Slack's limits, in characters and fields of one section."""


def escape(text: str) -> str:
    """Text that Slack shows as it is: no mentions, links or channels come out of it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def headline(alert: Alert) -> str:
    """One line: level, or that it is over, and title."""
    return f"{'RESOLVED' if alert.resolved else alert.level.value}: {alert.title}"


def figures(alert: Alert) -> dict[str, float]:
    """All numbers of an alert by name."""
    own = {"value": alert.value, "bound": alert.bound, "threshold": alert.threshold, "n": alert.n}
    return {name: float(number) for name, number in own.items() if number is not None} | alert.numbers


def number(value: float) -> str:
    """At most six significant digits, counts whole."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _cut(text: str, limit: int) -> str:
    """Cut before an entity rather than in it."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    start = kept.rfind("&")
    if start >= 0 and ";" not in kept[start:]:
        kept = kept[:start]
    return kept + "\u2026"


def slack_body(alert: Alert, event_id: str, channel: str | None) -> dict[str, Any]:
    """The JSON body for an incoming webhook; ``text`` is what notifications and old clients show."""
    sign = _RESOLVED if alert.resolved else _SIGNS[alert.level]
    title = f"{sign} {headline(alert)}"
    fields = [("Level", alert.level.value), ("Test", alert.test_id), ("Rule", alert.rule)]
    lines = [f"*{name}*\n{escape(text)}" for name, text in fields if text]
    lines += [f"*{escape(name)}*\n{number(value)}" for name, value in figures(alert).items()]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(title, _HEADER), "emoji": True}},
        {"type": "section", "text": {"type": "mrkdwn", "text": _cut(escape(alert.message) or "-", _SECTION)}},
    ]
    for start in range(0, min(len(lines), 4 * _FIELDS), _FIELDS):
        part = [{"type": "mrkdwn", "text": _cut(line, _FIELD)} for line in lines[start : start + _FIELDS]]
        blocks.append({"type": "section", "fields": part})
    foot = f"{rfc3339(alert.at_ms)} \u00b7 {escape(alert.incident)} \u00b7 {escape(event_id)}"
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _cut(foot, _FIELD)}]})
    body: dict[str, Any] = {"text": _cut(f"{sign} {escape(headline(alert))}", _SECTION), "blocks": blocks}
    if channel:
        body["channel"] = channel
    return body


def log_fields(alert: Alert, event_id: str) -> dict[str, Any]:
    """What the log destination writes."""
    fields: dict[str, Any] = {
        "level_of_alert": alert.level.value,
        "title": alert.title,
        "message": alert.message,
        "test_id": alert.test_id,
        "rule": alert.rule,
        "incident": alert.incident,
        "alert_id": event_id,
        "resolved": alert.resolved or None,
        "numbers": figures(alert) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
