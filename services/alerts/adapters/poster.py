"""Requests over one HTTP session, each limited in time. Redirects are not followed: they would carry secrets off."""

from collections.abc import Mapping

import aiohttp

from services.alerts.domain.http_status import outcome_of
from services.alerts.domain.outcome import Outcome, Retry

_SHOWN = 200


class Poster:
    """The session is made at the first call."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, explain: bool = False
    ) -> tuple[Outcome, int]:
        """As `send`, by POST."""
        return await self.send("POST", url, body, headers, explain=explain)

    async def send(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], *, explain: bool = False
    ) -> tuple[Outcome, int]:
        """(outcome by status, status: 0 where there was no answer).

        ``explain`` adds the start of the answer to the reason of a refusal.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=True)
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                why = ""
                if explain and response.status >= 400:
                    why = (await response.content.read(_SHOWN)).decode(errors="replace")
                return outcome_of(response.status, response.headers, why), response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            return Retry(type(exc).__name__), 0

    async def close(self) -> None:
        """End the session."""
        if self._session is not None:
            await self._session.close()
