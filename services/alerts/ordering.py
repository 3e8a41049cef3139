"""Keeps the events of one incident in their order at one destination, whichever replica has which of them."""

import asyncio
import random
from collections.abc import Callable

from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.alerts.domain.backoff import RetryPolicy, turn_s
from services.alerts.domain.history import History, Place
from services.alerts.ports import Incoming, Ledger

log = get_logger(__name__)

_POLL_S = 0.01
_HISTORY_S = 2.0
_BEFORE_S = 0.3
PASS_ON_S = 0.5
"""Longest pause of what goes from hand to hand until it comes to the replica that gathers."""
_LONGEST = 2000
"""After so many deliveries, hours later, an event goes without the one before it rather than never."""


class Ordering:
    """An event waits for the one before it in its incident: until that was delivered, given up or left out.

    ``holds`` says of an event whether this replica has it in hand and keeps a rise in line behind it; ``gathered``
    whether one replica has all that waits, so that the one before may be on its way there.
    """

    def __init__(
        self, destination: str, history: Callable[[], History], ledger: Ledger, retry: RetryPolicy,
        holds: Callable[[str], bool], *, gathered: bool,
    ) -> None:  # fmt: skip
        self._destination = destination
        self._history = history
        self._ledger = ledger
        self._retry = retry
        self._holds = holds
        self._gathered = gathered

    async def wait(self, incoming: Incoming, event_id: str, *, resolved: bool) -> float | None:
        """None when it is the event's turn, else the seconds after which it is to come again."""
        if incoming.attempt > _LONGEST:
            log.error("order_given_up", destination=self._destination, alert_id=event_id)
            return None
        if not await self._until(lambda: self._read(incoming, event_id), _HISTORY_S):
            return self._again(incoming)
        before = self._history().before(event_id)
        if before is None or self._settled(before) or (not resolved and self._holds(before.event_id)):
            return None
        # Another replica has it in hand, most likely; what is being tried again or goes from hand to hand takes longer.
        known = self._ledger.known(self._destination, before.event_id)
        under_way = known is None or bool(known.doubt)
        if under_way and not self._gathered and await self._until(lambda: self._settled(before), _BEFORE_S):
            return None
        return self._again(incoming)

    def _read(self, incoming: Incoming, event_id: str) -> bool:
        history = self._history()
        return history.holds(event_id) or history.position >= incoming.sequence

    def _settled(self, before: Place) -> bool:
        if before.sequence <= self._ledger.begins_after(self._destination):
            return True
        record = self._ledger.known(self._destination, before.event_id)
        return record is not None and record.final

    def _again(self, incoming: Incoming) -> float:
        pause = turn_s(self._retry, incoming.attempt, random.random())  # noqa: S311
        return min(PASS_ON_S, pause) if self._gathered else pause

    @staticmethod
    async def _until(done: Callable[[], bool], seconds: float) -> bool:
        deadline = monotonic() + seconds
        while not done():
            if monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True
