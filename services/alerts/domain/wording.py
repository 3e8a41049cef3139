"""What people read of an alert at one destination: the operator's templates, or the alert's own words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

from schemas.template import AlertTemplate
from schemas.v1.alerts import Alert
from schemas.v1.common import rfc3339

MAY_BE_REPEAT = "(may be a repeat: the alert service was restarted while sending)"
NOTHING = "-"
"""Stands for a fact that an alert does not have."""


@dataclass(frozen=True)
class Words:
    """A title, the same as a headline (with the level, where the title is the alert's own), a text, and the address
    of the test's report where there is one.
    """

    title: str
    headline: str
    text: str
    report: str | None = None


@dataclass(frozen=True)
class Wording:
    """One destination's templates, and where the API can be reached; what is None is the alert's own."""

    title: str | None = None
    text: str | None = None
    public_url: str | None = None

    def of(self, alert: Alert) -> Words:
        """The words for an alert. What a template names is text: it is not looked at for names again."""
        report = report_url(self.public_url, alert.test_id)
        facts = _Facts(alert, report)
        text = alert.message if self.text is None else AlertTemplate(self.text).substitute(facts)
        if self.title is None:
            return Words(alert.title, headline(alert), text, report)
        title = AlertTemplate(self.title).substitute(facts)
        return Words(title, title, text, report)


class _Facts(Mapping[str, str]):
    """An alert's facts by the names of templates; unknown ones of a family are NOTHING."""

    def __init__(self, alert: Alert, report: str | None) -> None:
        own = {name: getattr(alert, name) for name in ("value", "bound", "threshold", "n")}
        self._facts: dict[str, str] = {
            "level": alert.level.value,
            "state": state(alert),
            "title": alert.title,
            "message": alert.message,
            "test_id": alert.test_id or NOTHING,
            "rule": alert.rule or NOTHING,
            "incident": alert.incident,
            "time": rfc3339(alert.at_ms),
            "report_url": report or NOTHING,
            **{name: NOTHING if figure is None else number(figure) for name, figure in own.items()},
            **{f"tags.{name}": text for name, text in alert.tags.items()},
            **{f"numbers.{name}": number(figure) for name, figure in alert.numbers.items()},
        }

    def __getitem__(self, name: str) -> str:
        return self._facts.get(name, NOTHING)

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def doubted(words: Words) -> Words:
    """The words of a message that may have arrived before."""
    return replace(words, text=f"{MAY_BE_REPEAT}\n{words.text}")


def plain(alert: Alert) -> Words:
    """An alert in its own words."""
    return Wording().of(alert)


def report_url(public_url: str | None, test_id: str | None) -> str | None:
    """Where the decision report of a test is."""
    if public_url is None or test_id is None:
        return None
    return f"{public_url.rstrip('/')}/v1/ab-testing/tests/{quote(test_id, safe='')}/report"


def state(alert: Alert) -> str:
    """The level, or that it is over."""
    return "RESOLVED" if alert.resolved else alert.level.value


def headline(alert: Alert) -> str:
    """One line: level, or that it is over, title, and which models it is about."""
    return f"{state(alert)}: {named(alert)}"


def named(alert: Alert) -> str:
    """The title, with the models of its test."""
    model_a, model_b = (alert.tags.get(name) for name in ("model_a", "model_b"))
    return f"{alert.title} ({model_b} against {model_a})" if model_a and model_b else alert.title


def number(value: float) -> str:
    """At most six significant digits, counts whole."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
