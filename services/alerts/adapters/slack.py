"""The destination `slack`: an incoming webhook, or a bot that posts to a channel."""

import asyncio
import logging

import aiohttp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from schemas.v1.alerts import Alert
from services.alerts.adapters.base import BaseDestination
from services.alerts.domain.http_status import outcome_of, retry_after
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.domain.render import slack_body
from services.alerts.settings import SEND_TIMEOUT_S, Channel

API_URL = "https://slack.com/api/"
_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, SlackClientError)
_TRANSIENT = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout",
     "message_limit_exceeded", "team_added_to_org"}
)  # fmt: skip
"""Errors of `chat.postMessage` that pass; the others (channel_not_found, invalid_auth, ...) need somebody's hand."""


def _silent_logger() -> logging.Logger:
    """slack-sdk logs the URL, which is the secret, at DEBUG."""
    logger = logging.getLogger("cypria.slack")
    logger.setLevel(logging.WARNING)
    return logger


class SlackDestination(BaseDestination):
    """One webhook. Retries are the consumer's, so the client's own are off."""

    def __init__(self, channel: Channel, timeout_s: int = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._channel = channel.options.channel
        self._client = AsyncWebhookClient(
            channel.secrets["webhook_url"], timeout=timeout_s, retry_handlers=[], logger=_silent_logger()
        )

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One POST; the reason of a failure is a status or the kind of error, never the URL."""
        try:
            reply = await self._client.send_dict(slack_body(alert, event_id, self._channel, self.wording.of(alert)))
        except _FAILURES as exc:
            return Retry(type(exc).__name__)
        return outcome_of(reply.status_code, reply.headers)


class SlackBotDestination(BaseDestination):
    """`chat.postMessage` with a bot's token; ``url`` replaces Slack's API, such as for a proxy."""

    def __init__(self, channel: Channel, timeout_s: int = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._channel = str(channel.options.channel)
        base = channel.secrets.get("url", API_URL)
        self._client = AsyncWebClient(
            channel.secrets["token"], base_url=base if base.endswith("/") else f"{base}/", timeout=timeout_s,
            retry_handlers=[], logger=_silent_logger(),
        )  # fmt: skip

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """One call; Slack says what is wrong in a word, which is the reason."""
        body = slack_body(alert, event_id, self._channel, self.wording.of(alert))
        try:
            await self._client.chat_postMessage(unfurl_links=False, **body)
        except SlackApiError as exc:
            return _refusal(exc)
        except _FAILURES as exc:
            return Retry(type(exc).__name__)
        return Sent()


def _refusal(exc: SlackApiError) -> Outcome:
    status = int(getattr(exc.response, "status_code", 0) or 0)
    headers = getattr(exc.response, "headers", None) or {}
    data = getattr(exc.response, "data", None)
    error = data.get("error") if isinstance(data, dict) else None
    if status == 200 and isinstance(error, str):
        return Retry(error, retry_after(headers)) if error in _TRANSIENT else Refused(error)
    if status == 200:
        return Retry("an answer that is not Slack's")
    return outcome_of(status, headers, str(error or ""))
