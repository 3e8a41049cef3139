"""The audit's chain, checked by itself: what is new every few minutes, all of it once a day."""

import asyncio
import time

from schemas.v1.query import AuditProblem, AuditVerification, AuditVerifyQuery
from services._runtime.bus import TRANSIENT
from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters
from services.metrics.adapters.audit_checks import AuditChecks
from services.metrics.adapters.clickhouse import AWAY
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.domain.chain import Place

log = get_logger(__name__)

PAGE = 2000
AGAIN_S = 10.0
"""How long after something was found it is looked for again before anybody is told: a stream that lost its end in a
power cut differs from the table until the archive has noticed.
"""
TITLE = "The audit record has been touched"


class AuditRounds:
    """Checks every ``every_s`` what is new since the last time, and all of it every ``all_every_s``.

    Where it has come to is kept in memory: a process that starts checks all of it, ``every_s`` after its start. Where
    something does not fit the next rounds begin before it, so that it is found until it is mended; then all of it is
    checked once more.
    """

    def __init__(
        self, checks: AuditChecks, alarms: Alarms, every_s: float, all_every_s: float, again_s: float = AGAIN_S
    ) -> None:
        self._checks = checks
        self._alarms = alarms
        self._every_s = every_s
        self._all_every_s = all_every_s
        self._again_s = again_s
        self._place: Place | None = None
        self._all_at: float | None = None
        self._broken = False

    async def run(self) -> None:
        """Go on until cancelled; at once at its end where ``every_s`` is 0."""
        if not self._every_s:
            return
        for what in ("all", "new"):
            meters.AUDIT_CHECKED.labels(what)
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.round()
            except (*AWAY, *TRANSIENT) as exc:
                log.warning("audit_check_waits", error=repr(exc)[:300])
            except Exception:
                log.exception("audit_check_failed")

    async def round(self) -> None:
        """One check; what it finds is told. Raises one of AWAY, and NatsError: the next one then goes on from there."""
        whole = self._all_at is None or time.monotonic() - self._all_at >= self._all_every_s
        if whole:
            self._place = None
        found = await self._walk()
        broken = any(one.kind != "deleted" for one in found)
        for one in found:
            log.error("audit_touched", kind=one.kind, reason=one.message)
            incident = f"metrics.audit.{one.kind}.{one.stream}.{one.first}"
            self._alarms.critical(incident, TITLE, f"{one.message}. `cypria audit verify` shows it")
        meters.AUDIT_CHECKS.labels("broken" if broken else "deleted" if found else "whole").inc()
        if found:
            meters.AUDIT_TOUCHED.set(1)
        elif whole:
            meters.AUDIT_TOUCHED.set(0)
        for what in ("all", "new") if whole else ("new",):
            meters.AUDIT_CHECKED.labels(what).set_to_current_time()
        if whole:
            self._all_at = time.monotonic()
        elif self._broken and not broken:
            self._all_at = None
        self._broken = broken

    async def _walk(self) -> list[AuditProblem]:
        """From the place to the end, or to the first thing that does not fit; and what was deleted on the way."""
        deleted: list[AuditProblem] = []
        while True:
            began = time.monotonic()
            page, place = await self._look()
            meters.AUDIT_RECORDS.inc(page.checked)
            if page.problem is not None:
                return [page.problem, *deleted]
            self._place = place
            deleted += page.deleted
            if page.complete:
                return deleted
            await asyncio.sleep(time.monotonic() - began)  # half of the time is for others

    async def _look(self) -> tuple[AuditVerification, Place | None]:
        question = AuditVerifyQuery(limit=PAGE)
        page, place = await self._checks.page(self._place, question)
        if page.problem is not None or page.deleted:
            await asyncio.sleep(self._again_s)
            page, place = await self._checks.page(self._place, question)
        return page, place
