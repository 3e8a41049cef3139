"""What must go by itself: a task in every router looks for salts of tests that are over, and for old tests."""

import asyncio

from schemas.v1.alerts import AuditRecord
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.control.parts import Parts
from services.router.domain.descending import SYSTEM
from services.router.domain.refusals import Refused
from services.router.domain.retention import kept
from services.router.domain.salts import ROOT_VERSION, over

log = get_logger(__name__)

LOOK_S = 60.0
DAY_MS = 86_400_000


class Forgetter:
    """All routers do this; each thing goes once, and whoever comes late finds it gone. ``every_s`` in seconds."""

    def __init__(self, parts: Parts, every_s: float = LOOK_S) -> None:
        self._parts = parts
        self._every_s = every_s
        self._grace_ms = round(parts.settings.privacy.unit_salt_grace_minutes * 60_000)
        self._retention_ms = parts.settings.privacy.retention_days * DAY_MS
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="forgetter")

    async def stop(self) -> None:
        """End; what is left undone is done by another router or after a restart."""
        await end(self._task)

    async def look(self, now: int) -> None:
        """Destroy what is over at this time (Unix ms). Raises Unavailable when the bus does not answer."""
        await self._salts(now)
        await self._tombstones()
        await self._tests(now)

    async def _salts(self, now: int) -> None:
        salts, experiments = self._parts.salts, self._parts.experiments
        if not over(salts.all(), experiments.entries(), now, self._grace_ms):
            return
        # The copy in memory may be behind, and a salt that a test needs could not be had back.
        for salt in over(salts.all(), await experiments.fresh(), now, self._grace_ms):
            if await salts.destroy(salt.version):
                log.info("unit_salt_destroyed", test_id=salt.test_id, version=salt.version)
                self._record("unit-salt-destroyed", salt.test_id)

    async def _tests(self, now: int) -> None:
        """What ended longer ago than things are kept; elsewhere it ages out by itself."""
        for entry in self._parts.experiments.entries():
            if kept(entry, now, self._retention_ms) is entry:
                continue
            if await self._parts.experiments.forget(entry.model_a, now, self._retention_ms):
                log.info("old_tests_forgotten", model_a=entry.model_a)

    async def _tombstones(self) -> None:
        """Without its salt nobody can tell whose hash a tombstone names."""
        salted = {salt.test_id for salt in self._parts.salts.all()}
        lasting = {test.test_id for test in self._parts.experiments.entries() if test.unit_salt_version == ROOT_VERSION}
        for test_id in self._parts.erasures.tests():
            if test_id not in salted | lasting:
                await self._parts.erasures.drop(test_id)

    def _record(self, action: str, test_id: str) -> None:
        self._parts.audit.record(
            AuditRecord(
                at_ms=now_ms(), actor=SYSTEM, role="none", action=action, test_id=test_id, source="router", status=200,
                outcome="ok", request_id=f"{action}.{test_id}",
            )
        )  # fmt: skip

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.look(now_ms())
            except Refused as exc:
                log.warning("not_forgotten_yet", reason=exc.message)
            except Exception:
                log.exception("forgetting_failed")
