"""The destination `slack`: an incoming webhook, or a bot that posts to a channel."""

import asyncio
import logging
import re
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import aiohttp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from schemas.v1.alerts import Alert
from services.alerts.adapters.base import BaseDestination
from services.alerts.adapters.explaining import explained
from services.alerts.domain.http_status import outcome_of, retry_after
from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.domain.peer import Peer, peer_of
from services.alerts.domain.render import slack_body
from services.alerts.settings import SEND_TIMEOUT_S, Channel, setting

API_URL = "https://slack.com/api/"
_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, SlackClientError)
_TRANSIENT = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout",
     "message_limit_exceeded", "team_added_to_org"}
)  # fmt: skip
"""Errors of `chat.postMessage` that pass; the others need somebody's hand."""
_TOKEN = frozenset({"invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"})
_NOT_THERE = ("duplicate_message_not_found", "duplicate_channel_not_found")
"""It knows the `client_msg_id` and has no message under it: what was sent then did not arrive."""
_CHANNEL = frozenset({"channel_not_found", "not_in_channel", "is_archived", "restricted_action_read_only_channel"})
_WORD = re.compile(r"[a-z_]{3,80}")
"""What a webhook answers when it refuses, such as no_service."""


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
        self._timeout_s = timeout_s
        self._peer = peer_of(channel.secrets["webhook_url"], setting(channel.options, "webhook_url"))
        self._client = AsyncWebhookClient(
            channel.secrets["webhook_url"], timeout=timeout_s, retry_handlers=[], logger=_silent_logger()
        )

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One POST. Slack says what is wrong in a word."""
        body = slack_body(alert, event_id, self._channel, self.words(alert, repeat=repeat))
        try:
            reply = await self._client.send_dict(body)
        except _FAILURES as exc:
            return Retry(explained(exc, self._peer, self._timeout_s))
        word = reply.body if _WORD.fullmatch(reply.body or "") else ""
        return outcome_of(reply.status_code, reply.headers, self._peer, word)


class SlackBotDestination(BaseDestination):
    """`chat.postMessage` with a bot's token; ``url`` replaces Slack's API, such as for a proxy."""

    def __init__(self, channel: Channel, timeout_s: int = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        self._channel = str(channel.options.channel)
        self._timeout_s = timeout_s
        base = channel.secrets.get("url", API_URL)
        self._peer = peer_of(base, "url", setting(channel.options, "token"))
        self._client = AsyncWebClient(
            channel.secrets["token"], base_url=base if base.endswith("/") else f"{base}/", timeout=timeout_s,
            retry_handlers=[], logger=_silent_logger(),
        )  # fmt: skip

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """One call; Slack says what is wrong in a word, which is the reason.

        A repetition has the same `client_msg_id`, which Slack takes and does not promise to heed.
        """
        body = slack_body(alert, event_id, self._channel, self.words(alert, repeat=repeat))
        own_id = str(uuid5(NAMESPACE_URL, f"{self.name}\n{event_id}"))
        outcome = await self._post({**body, "client_msg_id": own_id})
        if isinstance(outcome, Refused) and any(error in outcome.reason for error in _NOT_THERE):
            return await self._post(body)
        return outcome

    async def _post(self, body: dict[str, Any]) -> Outcome:
        try:
            await self._client.chat_postMessage(unfurl_links=False, **body)
        except SlackApiError as exc:
            return _refusal(exc, self._peer)
        except _FAILURES as exc:
            return Retry(explained(exc, self._peer, self._timeout_s))
        return Sent()


def _refusal(exc: SlackApiError, peer: Peer) -> Outcome:
    status = int(getattr(exc.response, "status_code", 0) or 0)
    headers = getattr(exc.response, "headers", None) or {}
    data = getattr(exc.response, "data", None)
    error = data.get("error") if isinstance(data, dict) else None
    if status == 200 and isinstance(error, str):
        reason = f"Slack says {error}: {_remedy(error, peer)}"
        return Retry(reason, retry_after(headers)) if error in _TRANSIENT else Refused(reason)
    if status == 200:
        return Retry(f"{peer.where} does not answer as Slack does: check {peer.address}")
    return outcome_of(status, headers, peer, str(error or ""))


def _remedy(error: str, peer: Peer) -> str:
    if error in _TRANSIENT:
        return "this passes"
    if error in _TOKEN:
        return f"set {peer.login} to a bot token that is good"
    if error in _CHANNEL:
        return "check channel, and invite the bot to it"
    if error == "missing_scope":
        return "give the bot the scope chat:write"
    return "look this word up among the errors of chat.postMessage"
