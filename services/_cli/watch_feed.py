"""The server-sent events of the edge, for as long as somebody watches: it comes back by itself when it is cut off."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp

from cypria import _http
from cypria._core import EVENTS_PATH, SILENCE_S, Stream
from cypria._operation import PREFIX
from services._cli import api

AWAY = (OSError, TimeoutError, aiohttp.ClientError)
_FIRST_S, _LONGEST_S = 0.5, 5.0


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
    query = _http.Query("GET", api.url(), PREFIX + EVENTS_PATH, accept="text/event-stream", key=api.key())
    async with _http.session(api.PATIENCE_S) as session:
        try:
            async with _http.alines(query, session, SILENCE_S, api.tls_context()) as (refused, lines):
                if refused is not None:
                    _http.decoded(query, refused)
                yield "", {}
                stream = Stream()
                async for line in lines:
                    if event := stream.feed(line):
                        yield event.name, event.data
        except _http.NotSentError as exc:
            raise exc.__cause__ or exc from None
