"""An alert in words: Slack's Block Kit, and fields for the log."""

from collections.abc import Mapping
from typing import Any

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, rfc3339
from services.alerts.domain.wording import Words, number, plain

_SIGNS = {
    AlertLevel.INFO: "\u2139\ufe0f",
    AlertLevel.WARNING: "\u26a0\ufe0f",
    AlertLevel.CRITICAL: "\U0001f534",
    AlertLevel.EMERGENCY: "\U0001f6a8",
}
_RESOLVED = "\u2705"
_LABELS: Mapping[str, str] = {
    "value": "Measured", "bound": "Confidence bound", "threshold": "Limit",
    "n": "Requests", "n_a": "Requests of A", "n_b": "Requests of B",
    "split_percent": "Share of B, %", "value_a": "Measured of A", "value_b": "Measured of B",
    "log_e": "Evidence, ln E", "limit": "Evidence needed, ln E",
    "errors": "Errors of B in a row", "stable_done": "Requests of A beside", "stable_errors": "Errors of A beside",
}  # fmt: skip
"""Figures, as people call them."""
_MODELS: Mapping[str, str] = {"model_a": "Stable (A)", "model_b": "Canary (B)"}
_HEADER = 150
_SECTION = 3000
_FIELD = 2000
_FIELDS = 10
"""Slack's limits, in characters and fields of one section."""


def escape(text: str) -> str:
    """Text that Slack shows as it is: no mentions, links or channels come out of it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figures(alert: Alert) -> dict[str, float]:
    """All numbers of an alert by name."""
    own = {"value": alert.value, "bound": alert.bound, "threshold": alert.threshold, "n": alert.n}
    return {name: float(number) for name, number in own.items() if number is not None} | alert.numbers


def facts(alert: Alert) -> list[tuple[str, str]]:
    """What people read beside the text: names in words, in a fixed order."""
    known = [("Level", alert.level.value), ("Test", alert.test_id), ("Rule", alert.rule)]
    numbers = figures(alert)
    if "n_b" in numbers:
        numbers.pop("n", None)  # the same, or a part of it
    tags = sorted(alert.tags.items(), key=lambda tag: (tag[0] not in _MODELS, tag[0]))
    return [
        *((name, text) for name, text in known if text),
        *((_MODELS.get(name, name), text) for name, text in tags),
        *((_LABELS.get(name, name), number(value)) for name, value in numbers.items()),
    ]


def _cut(text: str, limit: int) -> str:
    """Cut before an entity rather than in it."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    start = kept.rfind("&")
    if start >= 0 and ";" not in kept[start:]:
        kept = kept[:start]
    return kept + "\u2026"


def _link(url: str) -> str:
    """Slack takes no more than this of a section; an address that long is shown as text."""
    link = f"<{escape(url)}|Decision report>"
    return link if len(link) <= _SECTION else _cut(escape(url), _SECTION)


def slack_body(alert: Alert, event_id: str, channel: str | None, words: Words | None = None) -> dict[str, Any]:
    """The JSON body for an incoming webhook; ``text`` is what notifications and old clients show."""
    words = words or plain(alert)
    sign = _RESOLVED if alert.resolved else _SIGNS[alert.level]
    title = f"{sign} {words.headline}"
    lines = [f"*{escape(name)}*\n{escape(text)}" for name, text in facts(alert)]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(title, _HEADER), "emoji": True}},
        {"type": "section", "text": {"type": "mrkdwn", "text": _cut(escape(words.text) or "-", _SECTION)}},
    ]
    for start in range(0, min(len(lines), 4 * _FIELDS), _FIELDS):
        part = [{"type": "mrkdwn", "text": _cut(line, _FIELD)} for line in lines[start : start + _FIELDS]]
        blocks.append({"type": "section", "fields": part})
    if words.report:
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": _link(words.report)}})
    foot = f"{rfc3339(alert.at_ms)} \u00b7 {escape(alert.incident)} \u00b7 {escape(event_id)}"
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _cut(foot, _FIELD)}]})
    body: dict[str, Any] = {"text": _cut(f"{sign} {escape(words.headline)}", _SECTION), "blocks": blocks}
    if channel:
        body["channel"] = channel
    return body


def log_fields(alert: Alert, event_id: str, words: Words | None = None) -> dict[str, Any]:
    """What the log destination writes."""
    words = words or plain(alert)
    fields: dict[str, Any] = {
        "level_of_alert": alert.level.value,
        "title": words.title,
        "message": words.text,
        "test_id": alert.test_id,
        "rule": alert.rule,
        "incident": alert.incident,
        "alert_id": event_id,
        "resolved": alert.resolved or None,
        "numbers": figures(alert) or None,
        "report": words.report,
    }
    return {name: value for name, value in fields.items() if value is not None}
