"""The integration `webhook`: events as CloudEvents over HTTP, signed as alerts are."""

import secrets
import time

from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from schemas.v1.integrations import Started
from services._runtime.clock import now_ms
from services.alerts.adapters.poster import Poster
from services.alerts.domain.interest import METRIC_WINDOW, matches
from services.alerts.domain.outcome import Outcome
from services.alerts.domain.peer import peer_of
from services.alerts.domain.signing import SIGNATURE, TIMESTAMP, sign
from services.alerts.ports import Told
from services.alerts.settings import Link, setting

PROBE = "integration.test"


class EventWebhook:
    """What it gets is what the bus carries: an event keeps its id, type and source."""

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self._link = link
        address, secret = (setting(link.options, name) for name in ("url", "secret"))
        peer = peer_of(link.secrets["url"], address, f"{secret}, which the receiver must have as well")
        self._poster = Poster(link.options.timeout_seconds, peer)

    def wants(self, told: Told) -> bool:
        """Forwarded events that its patterns fit, and windows where it names them."""
        if told.data is not None and told.kind != METRIC_WINDOW:
            return False  # the same event comes forwarded
        return matches(self._link.events, told.kind) and matches(self._link.options.tests, told.test_id)

    async def tell(self, told: Told) -> Outcome:
        """One POST in CloudEvents' structured mode."""
        return await self._post(told.event_id, told.payload)

    async def probe(self) -> Outcome:
        """A CloudEvent of a type of its own, `cypria.integration.test.v1`."""
        event_id = f"test.{secrets.token_hex(4)}"
        nothing = Started(event_id=event_id, test_id="", at_ms=now_ms())
        return await self._post(event_id, dump(envelope(PROBE, event_id, "alerts", nothing.at_ms, nothing)))

    async def close(self) -> None:
        """End the session."""
        await self._poster.close()

    async def _post(self, event_id: str, body: bytes) -> Outcome:
        now_s = int(time.time())
        headers = {
            "Content-Type": CONTENT_TYPE,
            TIMESTAMP: str(now_s),
            SIGNATURE: sign(self._link.secrets["secret"], now_s, event_id, body),
        }
        return (await self._poster.post(self._link.secrets["url"], body, headers))[0]


def wanted_events(links: tuple[Link, ...]) -> tuple[str, ...]:
    """Patterns of the events that some webhook wants as they are."""
    return tuple(
        dict.fromkeys(pattern for link in links if link.type == "webhook" for pattern in link.events)
    )
