"""Requests over one HTTP session, each limited in time. Redirects are not followed: they would carry secrets off."""

from collections.abc import Mapping

import aiohttp

from services.alerts.adapters.explaining import explained
from services.alerts.domain.http_status import outcome_of
from services.alerts.domain.outcome import Outcome, Retry
from services.alerts.domain.peer import Peer


class Poster:
    """The session is made at the first call. ``peer`` is who is talked to, for reasons of failure."""

    def __init__(self, timeout_s: float, peer: Peer) -> None:
        self._timeout_s = timeout_s
        self._peer = peer
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[Outcome, int]:
        """As `send`, by POST."""
        return await self.send("POST", url, body, headers)

    async def send(self, method: str, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[Outcome, int]:
        """(outcome by status, status: 0 where there was no answer)."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=True)
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return outcome_of(response.status, response.headers, self._peer), response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            return Retry(explained(exc, self._peer, self._timeout_s)), 0

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()
