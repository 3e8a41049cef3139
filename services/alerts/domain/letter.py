"""An alert as a letter: subject, plain text and HTML; also what Apprise's channels get."""

from dataclasses import dataclass
from html import escape

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, rfc3339
from services.alerts.domain import render
from services.alerts.domain.wording import Words, plain

_SUBJECT = 200
_COLOURS = {
    AlertLevel.INFO: "#2f6f9f",
    AlertLevel.WARNING: "#b7791f",
    AlertLevel.CRITICAL: "#c53030",
    AlertLevel.EMERGENCY: "#8b0000",
}
_RESOLVED = "#2f855a"


@dataclass(frozen=True)
class Letter:
    """The subject is one line without control characters."""

    subject: str
    text: str
    html: str


def letter(alert: Alert, event_id: str, words: Words | None = None) -> Letter:
    """The same facts in both parts; everything that came from outside is escaped in the HTML part."""
    words = words or plain(alert)
    subject = " ".join("".join(c if c.isprintable() else " " for c in f"[Cypria] {words.headline}").split())
    facts = _facts(alert, event_id)
    width = max(len(name) for name, _ in facts)
    lines = [words.headline, "", words.text, "", *(f"{name:<{width}}  {value}" for name, value in facts)]
    if words.report:
        lines += ["", f"Decision report: {words.report}"]
    return Letter(subject[:_SUBJECT], "\n".join(lines) + "\n", _html(alert, facts, words))


def _facts(alert: Alert, event_id: str) -> list[tuple[str, str]]:
    return [*render.facts(alert), ("Time", rfc3339(alert.at_ms)), ("Incident", alert.incident), ("Alert", event_id)]


def _html(alert: Alert, facts: list[tuple[str, str]], words: Words) -> str:
    colour = _RESOLVED if alert.resolved else _COLOURS[alert.level]
    rows = "".join(
        f'<tr><td style="padding:2px 16px 2px 0;color:#555">{escape(name)}</td><td>{escape(value)}</td></tr>'
        for name, value in facts
    )
    message = escape(words.text).replace("\n", "<br>")
    report = f'<p><a href="{escape(words.report)}">Decision report</a></p>' if words.report else ""
    return (
        '<!doctype html><html><body style="font-family:sans-serif;color:#222">'
        f'<h2 style="margin:0;padding:8px 12px;background:{colour};color:#fff">{escape(words.headline)}</h2>'
        f"<p>{message}</p><table>{rows}</table>{report}</body></html>"
    )
