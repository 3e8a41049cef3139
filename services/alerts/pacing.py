"""Keeps one destination within its rate limit; what is held back goes to people as one message."""

import asyncio
from dataclasses import dataclass

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.domain.digest import digest
from services.alerts.domain.outcome import Outcome
from services.alerts.ports import Destination, Incoming, Ledger

IN_HAND = 200
"""So many alerts are held at most; the rest waits in the stream."""


@dataclass(frozen=True)
class _Held:
    alert: Alert
    event_id: str
    outcome: "asyncio.Future[Outcome]"


class Pacer:
    """Delivers at once, or holds alerts until the limit lets a message through. Nothing held is acknowledged."""

    def __init__(self, destination: Destination, ledger: Ledger) -> None:
        self._destination = destination
        self._ledger = ledger
        self._held: list[_Held] = []
        self._flusher: asyncio.Task[None] | None = None

    async def deliver(self, incoming: Incoming, alert: Alert, event_id: str) -> Outcome:
        """The outcome of the message that the alert went with. Raises NATS errors. An emergency is never held back."""
        limit = self._destination.route.per_minute
        if limit is None or alert.level is AlertLevel.EMERGENCY:
            return await self._destination.deliver(alert, event_id)
        if not self._held and not await self._ledger.slot(self._destination.name, limit):
            return await self._destination.deliver(alert, event_id)
        held = _Held(alert, event_id, asyncio.get_running_loop().create_future())
        self._held.append(held)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush(limit))
        if len(self._held) < IN_HAND:
            incoming.park()
        return await held.outcome

    async def stop(self) -> None:
        """Let go of what is held: it comes again to whoever is next."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    async def _flush(self, limit: int) -> None:
        while self._held:
            batch = await self._when_free(limit)
            if batch:
                _settle(batch, await self._send(batch))

    async def _when_free(self, limit: int) -> list[_Held]:
        """What may go now; empty where the bus failed, which the handlers of all that is held are told."""
        try:
            wait_ms = await self._ledger.slot(self._destination.name, limit)
            while wait_ms:
                await asyncio.sleep(wait_ms / 1000)
                wait_ms = await self._ledger.slot(self._destination.name, limit)
        except Exception as exc:
            _settle(self._take(everything=True), exc)
            return []
        return self._take(everything=self._destination.grouped)

    async def _send(self, batch: list[_Held]) -> Outcome | Exception:
        try:
            return await self._destination.deliver(digest([held.alert for held in batch]), batch[0].event_id)
        except Exception as exc:
            return exc

    def _take(self, *, everything: bool) -> list[_Held]:
        waiting = [held for held in self._held if not held.outcome.done()]
        taken = waiting if everything else waiting[:1]
        self._held = waiting[len(taken) :]
        return taken


def _settle(batch: list[_Held], outcome: Outcome | Exception) -> None:
    """A handler that was cancelled in the meantime waits no more."""
    for held in batch:
        if held.outcome.done():
            continue
        if isinstance(outcome, Exception):
            held.outcome.set_exception(outcome)
        else:
            held.outcome.set_result(outcome)
