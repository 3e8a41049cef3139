"""The destination `webhook`: signed CloudEvents over HTTP."""

import time

from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from services.alerts.adapters.base import HttpDestination
from services.alerts.domain.outcome import Outcome
from services.alerts.domain.peer import peer_of
from services.alerts.domain.signing import SIGNATURE, TIMESTAMP, sign
from services.alerts.settings import SEND_TIMEOUT_S, Channel, setting


class WebhookDestination(HttpDestination):
    """Every attempt is signed anew; the event's id stays, so that a receiver knows a repetition."""

    grouped = False

    def __init__(self, channel: Channel, timeout_s: float = SEND_TIMEOUT_S) -> None:
        self._url = channel.secrets["url"]
        address, secret = (setting(channel.options, name) for name in ("url", "secret"))
        peer = peer_of(self._url, address, f"{secret}, which the receiver must have as well")
        super().__init__(channel, peer, timeout_s)
        self._secret = channel.secrets["secret"]

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One POST in CloudEvents' structured mode; a repetition is the same event."""
        del repeat
        body = dump(envelope("alert", event_id, "alerts", alert.at_ms, alert, alert.test_id))
        now_s = int(time.time())
        headers = {
            "Content-Type": CONTENT_TYPE,
            TIMESTAMP: str(now_s),
            SIGNATURE: sign(self._secret, now_s, event_id, body),
        }
        return await self.post(self._url, body, headers)
