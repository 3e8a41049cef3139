"""What an administrator may have this service do: send a test alert, and send dead letters back."""

import asyncio
import secrets
from typing import Any

from pydantic import ValidationError

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from schemas.v1.query import AlertTestReply, RedriveQuery
from services._runtime.clock import now_ms
from services.alerts.adapters.nats_redrive import NatsRedrive
from services.alerts.answering import Answer, attempted, refused, sent_back
from services.alerts.ports import Destination


class Commands:
    """Each takes a payload and gives (reply, whether it is a QueryError)."""

    def __init__(self, destinations: list[Destination], types: dict[str, str], redriver: NatsRedrive) -> None:
        self._destinations = destinations
        self._types = types
        self._redriver = redriver

    async def test(self, _payload: bytes) -> Answer:
        """One attempt at each destination, all at once, whatever they are routed."""
        results = await asyncio.gather(*(self._probe(destination) for destination in self._destinations))
        return AlertTestReply(destinations=list(results)).model_dump_json().encode(), False

    async def redrive(self, payload: bytes) -> Answer:
        """Every dead letter of a destination is sent back once."""
        try:
            query = RedriveQuery.model_validate_json(payload or b"{}")
        except ValidationError:
            return refused("destination: give the name of a destination, or leave it out for all", "invalid_request")
        return await sent_back(self._redriver, query.destination or None, [one.name for one in self._destinations])

    async def _probe(self, destination: Destination) -> dict[str, Any]:
        token = secrets.token_hex(4)
        alert = Alert(
            incident=f"test.{token}", level=AlertLevel.INFO, title="Test alert", at_ms=now_ms(),
            message="This is a test of the alert destination: nothing has happened and nothing is to be done.",
        )  # fmt: skip
        name = destination.name
        told = await attempted(destination.probe(alert, f"test.{token}.{name}"), name)
        return {"destination": name, "type": self._types[name], **told}
