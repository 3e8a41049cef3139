"""DTESN's cache over its HTTP control endpoint: what is asked of it, and what its answers mean."""

from collections.abc import Mapping
from typing import Any

from schemas.v1.common import Decision
from schemas.v1.integrations import Decided, Occasion, RolledBack
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent

PATH = "/v1/dtesn/cache/control"
WARM = "optimize_for_model"
"""Action that a server may offer under this name; those that do not refuse it, and lose nothing."""

_ABSENT = frozenset({404, 405, 501})
_UNKNOWN_ACTION = frozenset({400, 404, 405, 422, 500, 501})
"""Statuses of an action that the server does not offer; some wrap their own 400 into a 500."""


def control(action: str, targets: list[str]) -> dict[str, Any]:
    """The body of one request. Each action may be repeated: it leaves the cache the same."""
    return {"action": action, "targets": targets, "force": False}


def stale_and_warm(occasion: Occasion, names: Mapping[str, str]) -> tuple[str, str | None] | None:
    """(model whose entries are of no use any more, model to warm), by the server's names; None where nothing is to do.

    A promotion replaces model A by B; a rollback takes B out.
    """
    model_a, model_b = (names.get(model, model) for model in (occasion.model_a, occasion.model_b))
    if isinstance(occasion, Decided) and occasion.decision is Decision.PROMOTE_B:
        return model_a, model_b
    if isinstance(occasion, RolledBack):
        return model_b, None
    return None


def available(outcome: Outcome, status: int) -> Outcome:
    """What the answer to `get_metrics` says of the cache."""
    if status in _ABSENT:
        return Refused(f"HTTP {status}: this server has no DTESN cache control: check url")
    if status == 503:
        after_s = outcome.after_s if isinstance(outcome, Retry) else 0.0
        return Retry("HTTP 503: the DTESN cache is off, or its server is starting", after_s)
    return outcome


def warmed(outcome: Outcome, status: int) -> Outcome:
    """What the answer to the warming means: warming is a favour, so a server without it has done all there is to do."""
    if status in _UNKNOWN_ACTION:
        return Sent(f"the server does not warm (HTTP {status})")
    return outcome
