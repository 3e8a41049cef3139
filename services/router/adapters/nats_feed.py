"""What happens on the bus, live, for server-sent events: subscribed only while somebody listens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from schemas import subjects
from services._runtime.bus import Bus

SUBJECTS = (subjects.EVENT, subjects.ROLLBACK, subjects.ALERT, subjects.WINDOW)
_QUEUE = 1000


@dataclass(frozen=True, slots=True)
class Happening:
    """One message as it came: its subject and bytes."""

    subject: str
    data: bytes


class Feed:
    """Fans messages out to listeners; one that does not keep up is ended rather than fed gaps."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._listeners: dict[asyncio.Queue[Happening | None], Callable[[], bool]] = {}
        self._subscriptions: list[Subscription] = []
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def listen(self, good: Callable[[], bool]) -> AsyncIterator["asyncio.Queue[Happening | None]"]:
        """A queue of what happens from now on; None in it says that it ends here.

        ``good`` is asked now and at every `look`: where it says no, the queue ends at once.
        """
        queue: asyncio.Queue[Happening | None] = asyncio.Queue(_QUEUE + 1)
        self._listeners[queue] = good
        self.look()
        try:
            async with self._lock:
                if not self._subscriptions:
                    self._subscriptions = [
                        await self._bus.nc.subscribe(s, cb=self._received) for s in SUBJECTS
                    ]
                    if self._bus.connected:
                        await self._bus.nc.flush(timeout=2)
            yield queue
        finally:
            self._listeners.pop(queue, None)
            async with self._lock:
                if not self._listeners:
                    await self._unsubscribe()

    def look(self) -> None:
        """End the listeners that may not listen any more; what waits for them goes to nobody."""
        for queue, good in list(self._listeners.items()):
            if not good():
                while not queue.empty():
                    queue.get_nowait()
                self._end(queue)

    async def stop(self) -> None:
        """End every listener."""
        for queue in list(self._listeners):
            self._end(queue)

    async def _unsubscribe(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        if not self._bus.nc.is_closed:
            for subscription in subscriptions:
                await subscription.unsubscribe()

    async def _received(self, msg: Msg) -> None:
        happening = Happening(msg.subject, bytes(msg.data))
        for queue in list(self._listeners):
            if queue.qsize() < _QUEUE:
                queue.put_nowait(happening)
            else:
                self._end(queue)

    def _end(self, queue: "asyncio.Queue[Any]") -> None:
        self._listeners.pop(queue, None)
        queue.put_nowait(None)
