"""What destinations share."""

from collections.abc import Mapping

from schemas.v1.alerts import Alert
from services.alerts.adapters.poster import Poster
from services.alerts.domain.outcome import Outcome
from services.alerts.domain.peer import Peer
from services.alerts.domain.wording import Words, doubted
from services.alerts.settings import SEND_TIMEOUT_S, Channel


class BaseDestination:
    """Name and routing from the channel; a test alert is delivered like any other."""

    grouped = True

    def __init__(self, channel: Channel) -> None:
        self.name = channel.name
        self.route = channel.route
        self.wording = channel.wording

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One attempt."""
        raise NotImplementedError

    def words(self, alert: Alert, *, repeat: bool) -> Words:
        """What people read."""
        words = self.wording.of(alert)
        return doubted(words) if repeat else words

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """A test alert."""
        return await self.deliver(alert, event_id)

    async def close(self) -> None:
        """Nothing to let go of, where nothing is kept."""


class HttpDestination(BaseDestination):
    """Posts over one session; ``peer`` is who is talked to, for reasons of failure."""

    def __init__(self, channel: Channel, peer: Peer, timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._poster = Poster(timeout_s, peer)

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST") -> Outcome:
        """The outcome by status."""
        return (await self._poster.send(method, url, body, headers))[0]

    async def close(self) -> None:
        """End the session."""
        await self._poster.close()
