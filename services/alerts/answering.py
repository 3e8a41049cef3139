"""What commands about destinations and about integrations answer alike: one attempt, dead letters, refusals."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from schemas.v1.query import QueryError
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_redrive import NatsRedrive, UnknownDestinationError
from services.alerts.domain.outcome import Outcome, Refused, Retry
from services.alerts.handlers import BUS_ERRORS

log = get_logger(__name__)

PATIENCE_S = 20.0

Answer = tuple[bytes, bool]
"""The reply, and whether it is a QueryError."""


def refused(message: str, code: str) -> Answer:
    """A QueryError."""
    return QueryError(message=message, code=code).model_dump_json().encode(), True


async def attempted(attempt: Awaitable[Outcome], name: str) -> dict[str, Any]:
    """What became of one attempt to tell ``name`` something, for at most PATIENCE_S."""
    began = monotonic()
    reason: str | None = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            outcome = await attempt
        failed = isinstance(outcome, (Refused, Retry))
        reason = (outcome.reason if isinstance(outcome, (Refused, Retry)) else outcome.note) or None
    except TimeoutError:
        failed, reason = True, f"no answer within {PATIENCE_S:g} s"
    except Exception as exc:
        log.exception("test_failed", to=name)
        failed, reason = True, f"the alerts service itself failed ({type(exc).__name__}): its log has the trace"
    return {
        "outcome": "failed" if failed else "sent", "reason": reason, "seconds": round(monotonic() - began, 3),
    }  # fmt: skip


async def sent_back(redriver: NatsRedrive, name: str | None, configured: list[str]) -> Answer:
    """Every dead letter of ``name`` (None: of all that are ``configured``) is sent back once."""
    try:
        reply = await redriver.redrive(configured if name is None else [name], configured)
    except UnknownDestinationError as exc:
        return refused(str(exc), "not_found")
    except BUS_ERRORS as exc:
        log.warning("redrive_failed", error=repr(exc))
        return refused("the bus failed while dead letters were sent back: try again", "unavailable")
    return reply.model_dump_json().encode(), False
