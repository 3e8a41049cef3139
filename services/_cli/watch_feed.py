"""The server-sent events of the edge, for as long as somebody watches: it comes back by itself when it is cut off."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp

from services._cli import api

AWAY = (OSError, TimeoutError, aiohttp.ClientError)
_PATH = "/v1/ab-testing/events"
_SILENCE_S = 45.0
"""The edge says something every 15 s."""
_FIRST_S, _LONGEST_S = 0.5, 5.0
_LONGEST_LINE = 8 << 20


class Told(Protocol):
    """Told how it stands with the edge."""

    def __call__(self, text: str, *, lost: bool) -> None:
        """``lost``: it is gone, ``text`` says why; else it is there."""


async def follow(event: Callable[[str, dict[str, Any]], None], line: Told) -> None:
    """Hand on each event by its name and data, for ever. Raises ApiError where the key may not listen."""
    wait = _FIRST_S
    while True:
        try:
            async for name, data in events():
                wait = _FIRST_S
                if name:
                    event(name, data)
                else:
                    line("", lost=False)
            line("connection lost, trying again: the edge ended it", lost=True)
        except api.ApiError as exc:
            if exc.status in {401, 403}:
                raise
            line(f"{exc}; trying again", lost=True)
            wait = max(wait, exc.retry_after)
        except AWAY as exc:
            line(f"connection lost, trying again: {explained(exc)}", lost=True)
        await asyncio.sleep(wait)
        wait = min(_LONGEST_S, wait * 2)


def explained(exc: BaseException) -> str:
    """Why the edge, which has been there, is away."""
    if isinstance(exc, TimeoutError):
        return "it says nothing"
    cut = (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionResetError)
    return "it closed the connection" if isinstance(exc, cut) else api.explained(exc)


async def events() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(name, data) of each event; an empty name says that the edge listens. Ends where the edge ends it."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=api.PATIENCE_S, sock_read=_SILENCE_S)
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {api.key() or ''}"}
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers, read_bufsize=_LONGEST_LINE) as session,
        session.get(api.url() + _PATH, ssl=api.tls_context(), allow_redirects=False) as response,
    ):
        if response.status != 200 or response.content_type != "text/event-stream":
            error = _object((await response.read()).decode("utf-8", "replace")).get("error")
            said = error.get("message") if isinstance(error, dict) else None
            wait = response.headers.get("Retry-After", "")
            words = said or f"{api.url()} answered HTTP {response.status} where events were asked for: check CYPRIA_URL"
            raise api.ApiError(response.status, words, float(wait) if wait.isdigit() else 0.0)
        yield "", {}
        name = ""
        async for raw in response.content:
            field, _, value = raw.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data" and name:
                yield name, _object(value)
            elif not field and not value:
                name = ""


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
