"""Looks at all connections of a server twice a second: cheaper than timers for each request."""

import asyncio
from typing import Protocol
from weakref import WeakKeyDictionary

from uvicorn.server import ServerState

SWEEP_S = 0.5


class Swept(Protocol):
    """A connection."""

    def sweep(self, now: float) -> None:
        """Has the client's time run out? ``now`` is the loop's clock, in seconds."""


class Sweeper:
    """One for each server; ``connections`` are those that are open."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.connections: set[Swept] = set()
        self._loop = loop
        self._next()

    def _next(self) -> None:
        self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self.connections):
            connection.sweep(now)
        self._next()


_SWEEPERS: "WeakKeyDictionary[ServerState, Sweeper]" = WeakKeyDictionary()


def sweeper_of(state: ServerState, loop: asyncio.AbstractEventLoop) -> Sweeper:
    """The server's sweeper, begun when it is first asked for."""
    sweeper = _SWEEPERS.get(state)
    if sweeper is None:
        sweeper = _SWEEPERS[state] = Sweeper(loop)
    return sweeper
