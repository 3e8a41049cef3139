"""Tells of keys that end soon: a task in every router, all of which tell the same under the same ids."""

import asyncio

from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_keys import NatsKeys
from services.router.adapters.nats_notices import Notices
from services.router.domain.keys import expiry, expiry_incident, state

log = get_logger(__name__)

LOOK_S = 5.0


class Expiring:
    """Each alert is raised once by this process, as soon as the bus is there; what another has raised already tells
    nobody anything.
    """

    def __init__(self, keys: NatsKeys, notices: Notices, every_s: float = LOOK_S) -> None:
        self._keys = keys
        self._notices = notices
        self._every_s = every_s
        self._told: dict[str, tuple[bool, int]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="expiring-keys")

    async def stop(self) -> None:
        """End, once what is under way has been told."""
        await end(self._task)
        await self._notices.stop()

    def look(self, now: int) -> None:
        """Tell of what is so at this time (Unix ms)."""
        found = []
        for entry in self._keys.entries():
            told = expiry_incident(entry.name) in self._told
            if (alert := expiry(entry, now, told=told)) is not None:
                found.append((entry, alert))
        for entry, alert in found:
            what = (alert.resolved, alert.at_ms)
            if self._told.get(alert.incident) != what:
                self._told[alert.incident] = what
                # That a key which nobody was warned of has expired is news; that it was seen to in time is none.
                self._notices.tell(alert, instead=state(entry, now) != "expired")
        self._told = {alert.incident: self._told[alert.incident] for _, alert in found}

    async def _run(self) -> None:
        while True:
            try:
                self.look(now_ms())
            except Exception:
                log.exception("expiring_keys_failed")
            await asyncio.sleep(self._every_s)
