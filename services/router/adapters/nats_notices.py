"""Alerts that are worth hearing of late: told until the stream has them, those of one incident in their order."""

import asyncio
from collections import deque

from nats.errors import Error as NatsError

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from services._runtime.bus import Bus
from services._runtime.reader import PositionError, SequenceReader
from services._runtime.tasks import finish
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_alerts import alert_id, publish_alert

log = get_logger(__name__)

ROUND_S = 60.0
"""How long is tried before it is looked for in the stream: less than the server remembers ids for, so that of several
routers that try at once, one is heard."""
PAUSE_S = 5.0


class Notices:
    """Every router tells the same under the same ids. Whoever comes later than the server remembers an id looks for the
    event in the stream: told again after its end, it would be news once more.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: dict[str, deque[Alert]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def tell(self, alert: Alert, *, instead: bool = False) -> None:
        """Returns at once. ``instead``: what still waits of the same incident is of no interest any more."""
        waiting = self._waiting.setdefault(alert.incident, deque())
        if instead:
            waiting.clear()
        waiting.append(alert)
        if alert.incident not in self._tasks:
            self._tasks[alert.incident] = asyncio.create_task(self._run(alert.incident, waiting), name="notices")

    async def stop(self) -> None:
        """Give what is under way two seconds."""
        await finish(self._tasks.values(), 2)

    async def _run(self, incident: str, waiting: deque[Alert]) -> None:
        try:
            while waiting:
                await self._told(waiting)
        finally:
            del self._waiting[incident], self._tasks[incident]

    async def _told(self, waiting: deque[Alert]) -> None:
        """The first of them, until the stream has it or something else takes its place."""
        alert, late = waiting[0], False
        while waiting and waiting[0] is alert:
            try:
                if not (late and await self._stored(alert)):
                    await publish_alert(self._bus, alert, ROUND_S)
            except (NatsError, TimeoutError, OSError, PositionError) as exc:
                if not late:
                    log.warning("notice_waits", incident=alert.incident, title=alert.title, error=repr(exc))
                late = True
                await asyncio.sleep(PAUSE_S)
                continue
            if waiting and waiting[0] is alert:
                waiting.popleft()

    async def _stored(self, alert: Alert) -> bool:
        """Whether the stream has this very event. Raises what the bus does."""
        mark = f'"{alert_id(alert)}"'.encode()
        reader = SequenceReader(self._bus, streams.ALERTS.name, subjects.alert(alert.level))
        try:
            await reader.open()
            async for message in reader.catch_up():
                if mark in message.data:
                    return True
            return False
        finally:
            await reader.close()
