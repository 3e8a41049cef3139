"""Gathers what belongs together and keeps a destination within its limit; what waited goes to people as one message."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services._runtime.bus import TRANSIENT
from services._runtime.clock import monotonic
from services.alerts.domain.incident import incident_key
from services.alerts.domain.outcome import Later, Outcome, Sent
from services.alerts.ports import Destination, Incoming, Ledger
from services.alerts.sending import Piece, Sender

IN_HAND = 200
"""So many alerts are held at most; the rest waits in the stream."""
LEASE_S = 10.0
"""One replica gathers for a destination, and may be silent for so long."""
_AGAIN_S = 0.5
_GIVE_BACK_S = 0.5


@dataclass(frozen=True)
class _Held:
    piece: Piece
    due_at: float
    outcome: "asyncio.Future[Outcome | Later]"


class Pacer:
    """Delivers at once, or holds alerts until their time has come and the limit lets a message through.

    Nothing held is acknowledged. One replica holds for all, so that what belongs together is in one hand.
    """

    def __init__(self, destination: Destination, ledger: Ledger, sender: Sender) -> None:
        self._destination = destination
        self._ledger = ledger
        self._sender = sender
        self._replica = secrets.token_hex(4)
        self._held: list[_Held] = []
        self._flusher: asyncio.Task[None] | None = None

    def holds(self, event_id: str) -> bool:
        """Whether an event is held here that a rise of its incident may be kept in line behind.

        None may be behind a resolution, nor a resolution behind anything: were both claimed and this process died, the
        resolution would be told of an incident that nobody was told of.
        """
        return any(held.piece.event_id == event_id and not held.piece.alert.resolved for held in self._held)

    def elsewhere(self, alert: Alert) -> bool:
        """Whether another replica gathers what has to wait, so that this alert is that one's."""
        return self._may_wait(alert) and self._ledger.gatherer(self._destination.name) not in {None, self._replica}

    async def deliver(self, incoming: Incoming, piece: Piece, note: Callable[[], Awaitable[None]]) -> Outcome | Later:
        """The outcome of the message that the alert went with. Raises NATS errors. An emergency is never held back.

        ``note`` is called once the alert is held. What is in doubt waits for nothing but the limit.
        """
        route = self._destination.route
        if not piece.in_group:
            if not self._may_wait(piece.alert):
                return await self._sender.send([piece])
            if route.group_s is None and not self._held and not await self._slot():
                return await self._sender.send([piece])
        if not await self._gather():
            return Later(_AGAIN_S)
        due_at = monotonic() + (0.0 if piece.doubt else route.group_s or 0.0)
        held = _Held(piece, due_at, asyncio.get_running_loop().create_future())
        # What is in doubt goes first, or what follows it in its incident would overtake it.
        first = sum(bool(one.piece.doubt) for one in self._held) if piece.doubt else len(self._held)
        self._held.insert(first, held)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        if len(self._held) < IN_HAND:
            incoming.park()
        await note()
        return await held.outcome

    async def stop(self) -> None:
        """Let go of what is held: it comes again to whoever is next."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)

    def _may_wait(self, alert: Alert) -> bool:
        return self._destination.route.limited and alert.level is not AlertLevel.EMERGENCY

    async def _slot(self) -> int:
        """Milliseconds until a message may go, 0 where it may now and has taken its place."""
        limit = self._destination.route.per_minute
        return 0 if limit is None else await self._ledger.slot(self._destination.name, limit)

    async def _gather(self, seconds: float = LEASE_S) -> bool:
        return await self._ledger.gather(self._destination.name, self._replica, seconds)

    async def _flush(self) -> None:
        try:
            while self._held:
                batch = await self._when_free()
                if batch:
                    self._settle(batch, await self._send(batch))
        finally:
            # A lease that cannot be given back ends by itself.
            with contextlib.suppress(*TRANSIENT):
                async with asyncio.timeout(_GIVE_BACK_S):
                    await self._gather(0.0)

    async def _when_free(self) -> list[_Held]:
        """What may go now; empty where the bus failed, which the handlers of all that is held are told."""
        try:
            while (early_s := self._held[0].due_at - monotonic()) > 0:
                await self._pause(early_s)
            limited = False
            while wait_ms := await self._slot():
                limited = True
                await self._pause(wait_ms / 1000)
        except Exception as exc:
            self._settle(self._take(everything=True), exc)
            return []
        return self._take(everything=self._destination.grouped and (limited or self._destination.route.group_s is None))

    async def _pause(self, seconds: float) -> None:
        """Wait, and go on being the one who gathers."""
        await self._gather()
        await asyncio.sleep(min(seconds, LEASE_S / 3))

    async def _send(self, batch: list[_Held]) -> Outcome | Exception:
        keeping = asyncio.create_task(self._keep())
        try:
            return await self._sender.send([held.piece for held in batch])
        except Exception as exc:
            return exc
        finally:
            keeping.cancel()

    async def _keep(self) -> None:
        """Go on being the one who gathers, however long a channel takes."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(*TRANSIENT):
                await self._gather()

    def _take(self, *, everything: bool) -> list[_Held]:
        """All that is held, or what goes with the first: the same test's where alerts are gathered, else nothing.

        With what is in doubt goes only what it went with before.
        """
        waiting = [held for held in self._held if not held.outcome.done()]
        first = waiting[:1]
        if first and (doubt := first[0].piece.doubt):
            taken = [held for held in waiting if held.piece.doubt == doubt]
        elif everything:
            taken = waiting
        elif self._destination.route.group_s is not None:
            test_id = first[0].piece.alert.test_id if first else None
            taken = [held for held in waiting if held.piece.alert.test_id == test_id]
        else:
            taken = first
        self._held = [held for held in waiting if held not in taken]
        return taken

    def _settle(self, batch: list[_Held], outcome: Outcome | Exception) -> None:
        """A handler that was cancelled in the meantime waits no more. What follows a failure does not overtake it."""
        if not isinstance(outcome, Sent):
            incidents = {incident_key(held.piece.alert) for held in batch}
            behind = [held for held in self._held if incident_key(held.piece.alert) in incidents]
            self._held = [held for held in self._held if held not in behind]
            for held in behind:
                if not held.outcome.done():
                    held.outcome.set_result(Later(_AGAIN_S))
        for held in batch:
            if held.outcome.done():
                continue
            if isinstance(outcome, Exception):
                held.outcome.set_exception(outcome)
            else:
                held.outcome.set_result(outcome)
