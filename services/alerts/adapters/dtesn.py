"""The integration `dtesn`: keeps the cache of an Aphrodite server in step with what its models are for."""

import json
from typing import Any

from services.alerts.adapters.poster import Poster
from services.alerts.domain import dtesn
from services.alerts.domain.interest import matches
from services.alerts.domain.outcome import Outcome, Sent
from services.alerts.domain.peer import peer_of
from services.alerts.ports import Told
from services.alerts.settings import Link, setting


class DtesnIntegration:
    """Up to three requests for each occasion, under the event's id; a repetition leaves the cache the same."""

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self._link = link
        self._url = link.secrets["url"].rstrip("/") + dtesn.PATH
        address, token = (setting(link.options, name) for name in ("url", "token"))
        self._poster = Poster(link.options.timeout_seconds, peer_of(self._url, address, token))

    def wants(self, told: Told) -> bool:
        """Promotions and rollbacks."""
        if told.data is None or not matches(self._link.options.tests, told.test_id):
            return False
        return dtesn.stale_and_warm(told.data, self._link.models) is not None

    async def tell(self, told: Told) -> Outcome:
        """Ask whether the cache is there, drop what is stale, have the promoted model warmed where that is offered."""
        assert told.data is not None
        todo = dtesn.stale_and_warm(told.data, self._link.models)
        assert todo is not None
        stale, warm = todo
        outcome = await self._available(told.event_id)
        if isinstance(outcome, Sent):
            outcome, _ = await self._control(dtesn.control("invalidate_model", [stale]), told.event_id)
        if not isinstance(outcome, Sent) or warm is None:
            return outcome
        action = self._link.options.warm_action or dtesn.WARM
        return dtesn.warmed(*await self._control(dtesn.control(action, [warm]), f"{told.event_id}.warm"))

    async def probe(self) -> Outcome:
        """Whether the cache is there."""
        return await self._available("test")

    async def close(self) -> None:
        """End the session."""
        await self._poster.close()

    async def _available(self, event_id: str) -> Outcome:
        return dtesn.available(*await self._control(dtesn.control("get_metrics", []), event_id))

    async def _control(self, body: dict[str, Any], event_id: str) -> tuple[Outcome, int]:
        headers = {"Content-Type": "application/json", "Idempotency-Key": event_id}
        if "token" in self._link.secrets:
            headers["Authorization"] = f"Bearer {self._link.secrets['token']}"
        return await self._poster.post(self._url, json.dumps(body).encode(), headers)
