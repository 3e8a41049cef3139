"""What destinations share."""

from collections.abc import Mapping

from schemas.v1.alerts import Alert
from services.alerts.adapters.poster import Poster
from services.alerts.domain.outcome import Outcome
from services.alerts.settings import SEND_TIMEOUT_S, Channel


class BaseDestination:
    """Name and routing from the channel; a test alert is delivered like any other."""

    grouped = True

    def __init__(self, channel: Channel) -> None:
        self.name = channel.name
        self.route = channel.route
        self.wording = channel.wording

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One attempt."""
        raise NotImplementedError

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """A test alert."""
        return await self.deliver(alert, event_id)

    async def close(self) -> None:
        """Nothing to let go of, where nothing is kept."""


class HttpDestination(BaseDestination):
    """Posts JSON over one session."""

    def __init__(self, channel: Channel, timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._poster = Poster(timeout_s)

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST", explain: bool = False
    ) -> Outcome:
        """The outcome by status; ``explain`` adds the start of the answer to the reason of a refusal."""
        return (await self._poster.send(method, url, body, headers, explain=explain))[0]

    async def close(self) -> None:
        """End the session."""
        await self._poster.close()
