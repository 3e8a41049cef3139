"""What one may ask of integrations: how they stand, whether they can be told something, and dead letters once more."""

import asyncio
from typing import Any

from pydantic import ValidationError

from schemas.v1.query import IntegrationQuery, IntegrationsReply, IntegrationsTestReply
from services._runtime.telemetry import get_logger
from services.alerts.adapters.nats_links import NatsStandings
from services.alerts.adapters.nats_redrive import LinkRedrive, UnknownDestinationError
from services.alerts.answering import Answer, attempted, refused, sent_back
from services.alerts.handlers import BUS_ERRORS
from services.alerts.ports import Integration
from services.alerts.settings import Link

log = get_logger(__name__)

_NO_NAME = "integration: give the name of one, or leave it out for all"


class IntegrationCommands:
    """Each takes a payload and gives (reply, whether it is a QueryError)."""

    def __init__(
        self, links: tuple[Link, ...], integrations: list[Integration], standings: NatsStandings, redriver: LinkRedrive
    ) -> None:
        self._links = links
        self._integrations = {integration.name: integration for integration in integrations}
        self._standings = standings
        self._redriver = redriver

    async def standing(self, _payload: bytes) -> Answer:
        """Every integration, with what waits for it and what became of its last message."""
        try:
            shown = [
                {"integration": link.name, "type": link.type, "events": list(link.events),
                 "tests": link.options.tests, "window_seconds": link.window_s, **await self._standings.standing(link)}
                for link in self._links
            ]  # fmt: skip
        except BUS_ERRORS as exc:
            log.warning("integrations_not_listed", error=repr(exc))
            return refused("the bus failed while the integrations were looked at: try again", "unavailable")
        return IntegrationsReply(integrations=shown).model_dump_json().encode(), False

    async def test(self, payload: bytes) -> Answer:
        """One attempt at each integration, or at the one that is named, all at once; nothing is acted upon."""
        try:
            query = IntegrationQuery.model_validate_json(payload or b"{}")
            names = self._named(query)
        except ValidationError:
            return refused(_NO_NAME, "invalid_request")
        except UnknownDestinationError as exc:
            return refused(str(exc), "not_found")
        results = await asyncio.gather(*(self._probe(self._integrations[name]) for name in names))
        return IntegrationsTestReply(integrations=list(results)).model_dump_json().encode(), False

    async def redrive(self, payload: bytes) -> Answer:
        """Every dead letter of an integration is sent back once."""
        try:
            query = IntegrationQuery.model_validate_json(payload or b"{}")
        except ValidationError:
            return refused(_NO_NAME, "invalid_request")
        return await sent_back(self._redriver, query.integration, list(self._integrations))

    def _named(self, query: IntegrationQuery) -> list[str]:
        if query.integration is None:
            return [*self._integrations]
        if query.integration not in self._integrations:
            known = ", ".join(self._integrations) or "none"
            raise UnknownDestinationError(f"no integration is named '{query.integration}': there are {known}")
        return [query.integration]

    async def _probe(self, integration: Integration) -> dict[str, Any]:
        kind = next(link.type for link in self._links if link.name == integration.name)
        told = await attempted(integration.probe(), integration.name)
        return {"integration": integration.name, "type": kind, **told}
