"""What destinations share."""

from collections.abc import Mapping

import aiohttp

from schemas.v1.alerts import Alert
from services.alerts.domain.http_status import outcome_of
from services.alerts.domain.outcome import Outcome, Retry
from services.alerts.settings import SEND_TIMEOUT_S, Channel

_SHOWN = 200


class BaseDestination:
    """Name and routing from the channel; a test alert is delivered like any other."""

    grouped = True

    def __init__(self, channel: Channel) -> None:
        self.name = channel.name
        self.route = channel.route

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One attempt."""
        raise NotImplementedError

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """A test alert."""
        return await self.deliver(alert, event_id)

    async def close(self) -> None:
        """Nothing to let go of, where nothing is kept."""


class HttpDestination(BaseDestination):
    """Posts JSON over one session. Redirects are not followed: they would carry the secret elsewhere."""

    def __init__(self, channel: Channel, timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], *, explain: bool = False) -> Outcome:
        """The outcome by status; ``explain`` adds the start of the answer to the reason of a refusal."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=True)
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                why = ""
                if explain and response.status >= 400:
                    why = (await response.content.read(_SHOWN)).decode(errors="replace")
                return outcome_of(response.status, response.headers, why)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            return Retry(type(exc).__name__)

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()
