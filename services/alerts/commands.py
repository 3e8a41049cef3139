"""What an administrator may have this service do: send a test alert, and send dead letters back."""

import asyncio
import secrets
from typing import Any

from pydantic import ValidationError

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from schemas.v1.query import AlertTestReply, QueryError, RedriveQuery
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_redrive import NatsRedrive, UnknownDestinationError
from services.alerts.domain.outcome import Refused, Retry
from services.alerts.handlers import BUS_ERRORS
from services.alerts.ports import Destination

log = get_logger(__name__)

PATIENCE_S = 20.0


class Commands:
    """Each takes a payload and gives (reply, whether it is a QueryError)."""

    def __init__(self, destinations: list[Destination], types: dict[str, str], redriver: NatsRedrive) -> None:
        self._destinations = destinations
        self._types = types
        self._redriver = redriver

    async def test(self, _payload: bytes) -> tuple[bytes, bool]:
        """One attempt at each destination, all at once, whatever they are routed."""
        results = await asyncio.gather(*(self._probe(destination) for destination in self._destinations))
        return AlertTestReply(destinations=list(results)).model_dump_json().encode(), False

    async def redrive(self, payload: bytes) -> tuple[bytes, bool]:
        """Every dead letter of a destination is sent back once."""
        try:
            query = RedriveQuery.model_validate_json(payload or b"{}")
            wanted = [query.destination] if query.destination else [one.name for one in self._destinations]
            reply = await self._redriver.redrive(wanted, [one.name for one in self._destinations])
        except ValidationError:
            return _error("destination: give the name of a destination, or leave it out for all", "invalid_request")
        except UnknownDestinationError as exc:
            return _error(str(exc), "not_found")
        except BUS_ERRORS as exc:
            log.warning("redrive_failed", error=repr(exc))
            return _error("the bus failed while dead letters were sent back: try again", "unavailable")
        return reply.model_dump_json().encode(), False

    async def _probe(self, destination: Destination) -> dict[str, Any]:
        token, began = secrets.token_hex(4), monotonic()
        alert = Alert(
            incident=f"test.{token}", level=AlertLevel.INFO, title="Test alert", at_ms=now_ms(),
            message="This is a test of the alert destination: nothing has happened and nothing is to be done.",
        )  # fmt: skip
        reason: str | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                outcome = await destination.probe(alert, f"test.{token}.{destination.name}")
            failed = isinstance(outcome, (Refused, Retry))
            reason = (outcome.reason if isinstance(outcome, (Refused, Retry)) else outcome.note) or None
        except TimeoutError:
            failed, reason = True, f"no answer within {PATIENCE_S:g} s"
        except Exception as exc:
            log.exception("test_alert_failed", destination=destination.name)
            failed, reason = True, type(exc).__name__
        return {
            "destination": destination.name, "type": self._types[destination.name],
            "outcome": "failed" if failed else "sent", "reason": reason, "seconds": round(monotonic() - began, 3),
        }  # fmt: skip


def _error(message: str, code: str) -> tuple[bytes, bool]:
    return QueryError(message=message, code=code).model_dump_json().encode(), True
