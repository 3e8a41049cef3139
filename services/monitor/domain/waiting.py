"""What a verdict or a ramp waits for, in words: so many more requests, so many minutes. Decides nothing."""

import math
from collections.abc import Sequence

from schemas.v1.common import Message
from services.monitor.domain.checks import number
from services.monitor.domain.evaluator import TestEvaluator


class Condition(Message):
    """One condition: whether it is met, its evidence where it has any, and what it waits for.

    ``needs_requests`` counts those of both variants; None says that it cannot be told, ``at_least`` that it may take
    more.
    """

    name: str
    met: bool
    text: str
    log_e: float | None = None
    limit: float | None = None
    value: float | None = None
    needs_requests: int | None = None
    needs_minutes: float | None = None
    at_least: bool = False


def requests_for(missing: int, share: float) -> int | None:
    """Requests of both variants that bring so many to the variant with this share; None if it has none."""
    if missing <= 0:
        return 0
    return math.ceil(missing / share) if share > 0.0 else None


def requests_until(found: int, asked: int, seen: int) -> int | None:
    """Requests until there are so many of something, of which ``seen`` requests brought so many; None without any."""
    return None if found <= 0 else max(0, math.ceil(seen * (asked / found - 1.0)))


def at_this_rate(evaluator: TestEvaluator, requests: int) -> str:
    """How long so many requests take, as " (T minutes at this rate)"; empty while there is no rate."""
    rate = evaluator.totals.requests_per_second()
    return f" ({number(requests / rate / 60)} minutes at this rate)" if rate > 0 else ""


def waiting(evaluator: TestEvaluator, missing: Sequence[Condition]) -> str:
    """What the missing conditions wait for: "needs about N more requests (T minutes at this rate)".

    Where some of them cannot tell, it says what is known: at least so many.
    """
    unknown = ", ".join(c.name for c in missing if c.needs_requests is None or c.at_least)
    more = max((condition.needs_requests or 0 for condition in missing), default=0)
    minutes = max((condition.needs_minutes or 0.0 for condition in missing), default=0.0)
    parts = []
    if more:
        parts.append(f"needs {'at least' if unknown else 'about'} {more} more requests{at_this_rate(evaluator, more)}")
    if minutes > 0:
        parts.append(f"needs {number(minutes)} more minutes to its minimum duration")
    if unknown:
        which = "how many in all" if more else "how many more requests it needs"
        parts.append(f"{which} cannot be told yet ({unknown})")
    return "; ".join(parts) or "how many more requests it needs cannot be told yet (no growth so far)"
