"""The destination `pagerduty`: Events API v2."""

import json

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.adapters.base import HttpDestination
from services.alerts.domain.outcome import Outcome, Sent
from services.alerts.domain.pagerduty import event_body
from services.alerts.domain.peer import peer_of
from services.alerts.settings import SEND_TIMEOUT_S, Channel, setting

URL = "https://events.pagerduty.com/v2/enqueue"


class PagerDutyDestination(HttpDestination):
    """Events of one incident share a dedup key, so that PagerDuty opens, raises and resolves one of its own."""

    grouped = False

    def __init__(self, channel: Channel, timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._url = channel.secrets.get("url", URL)
        peer = peer_of(self._url, "url", setting(channel.options, "integration_key"))
        super().__init__(channel, peer, timeout_s)
        self._key = channel.secrets["integration_key"]
        given = channel.options.severity_mapping or {}
        self._mapping: dict[AlertLevel, str] = {AlertLevel(level): severity for level, severity in given.items()}

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """Trigger, or resolve; a repetition has the same dedup key."""
        del repeat
        body = event_body(alert, event_id, self._key, self._mapping, self.wording.of(alert))
        return await self.post(self._url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """Trigger, and resolve at once: a test leaves nobody paged."""
        outcome = await self.deliver(alert, event_id)
        if not isinstance(outcome, Sent):
            return outcome
        return await self.deliver(alert.model_copy(update={"resolved": True}), f"{event_id}.resolved")
