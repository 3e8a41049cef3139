"""Which alerts a destination wants, how often, and how fast."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel

WINDOW_MS = 60_000


@dataclass(frozen=True)
class Route:
    """The rules of one destination; ``tests`` and the values of ``tags`` are patterns with ``*`` and ``?``.

    ``repeat_ms``: an incident that is raised again after this long is told again. ``per_minute``: messages in any
    60 s, over all replicas. ``group_s``: how long the alerts of one test are gathered into one message.
    """

    min_level: AlertLevel = AlertLevel.INFO
    levels: frozenset[AlertLevel] | None = None
    tests: tuple[str, ...] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    repeat_ms: int | None = None
    per_minute: int | None = None
    group_s: float | None = None

    @property
    def limited(self) -> bool:
        """Whether alerts may have to wait here."""
        return self.per_minute is not None or self.group_s is not None

    def refuses(self, alert: Alert) -> str | None:
        """Why an alert does not go here, or None; resolutions go where the incident was told, whatever they are."""
        if alert.resolved:
            return None
        if self.levels is not None and alert.level not in self.levels:
            return f"level {alert.level} is not among the destination's levels"
        if self.tests is not None and not any(fnmatchcase(alert.test_id or "", pattern) for pattern in self.tests):
            return "the destination takes other tests"
        for name, pattern in self.tags.items():
            if not fnmatchcase(alert.tags.get(name, ""), pattern):
                return f"the destination takes another tag {name}"
        return None


def take_slot(sent_ms: list[int], per_minute: int, now_ms: int) -> tuple[list[int], int]:
    """(times of the last minute, with this one where it may go, milliseconds to wait until it may: 0 for now)."""
    recent = [time for time in sent_ms if now_ms - WINDOW_MS < time <= now_ms]
    if len(recent) < per_minute:
        return [*recent, now_ms], 0
    return recent, max(1, recent[-per_minute] + WINDOW_MS - now_ms)
