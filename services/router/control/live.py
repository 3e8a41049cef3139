"""How everything stands, about once a second, made once for all who watch: and not at all while nobody does."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from services._runtime.clock import monotonic
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_feed import Happening

log = get_logger(__name__)

SNAPSHOT = "cypria.live"
"""Stands where a happening on the bus has its subject; nothing of it is on the bus."""
EVERY_S = 1.0
HURRY_S = 0.15
"""After something happened: long enough for what belongs together to have happened."""
LEAST_S = 0.5
"""Between the beginnings of two pictures, however much happens: each costs a question to the monitor for each test."""
_BEHIND = 8
"""A watcher with so much unread gets the next picture, not this one."""

Watcher = asyncio.Queue[Happening | None]


class Live:
    """Hands the same picture to every watcher; each new one gets the last picture at once."""

    def __init__(self, picture: Callable[[], Awaitable[bytes]], every_s: float = EVERY_S) -> None:
        self._picture = picture
        self._every_s = every_s
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._last: Happening | None = None

    @contextlib.contextmanager
    def watched_by(self, queue: Watcher) -> Iterator[None]:
        """Put every picture into the queue while the block runs."""
        self._watchers.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="live")
        elif self._last is not None:
            queue.put_nowait(self._last)
            self.hurry()
        try:
            yield
        finally:
            self._watchers.discard(queue)

    def hurry(self) -> None:
        """Something happened: the next picture is due at once."""
        self._hurry.set()

    async def stop(self) -> None:
        """End it."""
        self._watchers.clear()
        await end(self._task)

    async def _run(self) -> None:
        while self._watchers:
            began = monotonic()
            try:
                data = await self._picture()
            except Exception as exc:
                log.warning("no_live_picture", error=repr(exc))
                self._last = None
            else:
                self._last = Happening(SNAPSHOT, data)
                self._hand_out(self._last)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._hurry.wait()
                    await asyncio.sleep(max(HURRY_S, began + LEAST_S - monotonic()))
            self._hurry.clear()
        self._last = None  # by the time that somebody watches again it is of another day

    def _hand_out(self, picture: Happening) -> None:
        for queue in self._watchers:
            if queue.qsize() < _BEHIND:
                queue.put_nowait(picture)
