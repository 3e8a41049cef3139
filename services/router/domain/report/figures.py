"""Figures and times as people read them."""

import math
from datetime import UTC, datetime

NONE = "-"
NOTHING = 1e-9
"""Below this a figure is rounding: sums of logarithms seldom are exactly 0."""


def number(value: float | None, digits: int = 4) -> str:
    """At most ``digits`` significant digits, thousands apart; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < NOTHING:
        return "0"
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """A whole number with thousands apart."""
    return NONE if value is None else f"{value:,d}"


def with_unit(value: float | None, unit: str) -> str:
    """A figure and its unit."""
    text = number(value)
    return text if text == NONE or not unit else f"{text} {unit}"


def share(bp: int | None) -> str:
    """A share of traffic in percent."""
    return NONE if bp is None else f"{bp / 100:g} %"


def when(ms: int | None) -> str:
    """A time to the second, in UTC."""
    if not ms:
        return NONE
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def moment(text: str | None) -> str:
    """A time stamp of the API to the second, in UTC."""
    if not text:
        return NONE
    try:
        return when(round(datetime.fromisoformat(text).timestamp() * 1000))
    except ValueError:
        return text


_HAPPENINGS = {
    "approved": "ramp step approved",
    "ramped": "next step of the ramp",
    "retried": "retry after a step down",
    "rolling_back": "gradual rollback begun",
}


def happening(kind: str) -> str:
    """A change of a test in words: ``split_changed`` becomes ``split changed``."""
    return _HAPPENINGS.get(kind, kind.replace("_", " "))


def span(seconds: float) -> str:
    """A duration in the unit that suits it: ``45 s``, ``5 min``, ``2.5 h``, ``3 d``."""
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if abs(seconds) < limit:
            return f"{round(seconds / size, 1):g} {unit}"
    return f"{round(seconds / 86_400, 1):g} d"
