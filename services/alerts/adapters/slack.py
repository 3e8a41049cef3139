"""The destination `slack`: an incoming webhook."""

import logging
from collections.abc import Mapping

import aiohttp
from slack_sdk.webhook.async_client import AsyncWebhookClient

from schemas.v1.alerts import Alert
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.domain.render import slack_body
from services.alerts.settings import SEND_TIMEOUT_S, Channel

_PERMANENT = frozenset({400, 401, 403, 404, 410, 413})
"""Slack's answers to a payload, hook or channel that is wrong for good."""


def _silent_logger() -> logging.Logger:
    """slack-sdk logs the URL, which is the secret, at DEBUG."""
    logger = logging.getLogger("cypria.slack")
    logger.setLevel(logging.WARNING)
    return logger


class SlackDestination:
    """One webhook. Retries are the consumer's, so the client's own are off."""

    def __init__(self, channel: Channel, timeout_s: int = SEND_TIMEOUT_S) -> None:
        assert channel.url is not None
        self.name = channel.name
        self.min_level = channel.min_level
        self._channel = channel.channel
        self._client = AsyncWebhookClient(
            channel.url, timeout=timeout_s, retry_handlers=[], logger=_silent_logger()
        )

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One POST; the reason of a failure is a status or the kind of error, never the URL."""
        try:
            reply = await self._client.send_dict(slack_body(alert, event_id, self._channel))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            return Retry(type(exc).__name__)
        if reply.status_code == 200:
            return Sent()
        reason = f"HTTP {reply.status_code}"
        if reply.status_code in _PERMANENT:
            return Refused(reason)
        return Retry(reason, _retry_after(reply.headers))

    async def close(self) -> None:
        """The client opens a connection for each alert and keeps none."""


def _retry_after(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float({k.lower(): v for k, v in headers.items()}.get("retry-after", "0")))
    except ValueError:
        return 0.0
