"""Which messages an integration is told."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

FORWARDED = "forwarded"
"""Kind of the message that carries an event as it is."""
METRIC_WINDOW = "metric_window"


def matches(patterns: Iterable[str] | None, name: str) -> bool:
    """Whether one of the patterns (``*`` and ``?``) fits; no patterns at all fit everything."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def kind_of(event_type: str) -> str:
    """``test.started`` of ``cypria.test.started.v1``."""
    return event_type.removeprefix("cypria.").removesuffix(".v1")
