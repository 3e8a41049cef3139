"""Anomalies of the control API, as alerts: each is raised once and resolved when it is over, whoever restarts."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from clickhouse_connect.driver.client import Client

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.adapters.clickhouse_audit import AuditStore
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.domain.anomalies import PREFIX, Anomaly, Limits, Seen, Watch, seen
from services.metrics.domain.chain import Link

log = get_logger(__name__)


class _Told(NamedTuple):
    """An anomaly that was raised and not resolved: the event's id, its level and title."""

    event_id: str
    level: str
    title: str


LOOK_S = 1.0
ASK_MS = 5_000
"""How often it is looked up which anomalies were raised and not resolved, by a process before or beside this one."""
_PENDING = 100_000
_RAISED, _RESOLVED = ".raised", ".resolved"


class AuditWatch:
    """Watches what `AuditArchive` has put into the table. `run` goes on until it is cancelled.

    What is going on is worked out anew from the table at every start; what has been told of it stands in the archive of
    alerts. So nothing else is kept, and processes beside each other tell the same under the same event ids.
    """

    def __init__(self, engine: ClickHouse, alarms: Alarms, limits: Limits) -> None:
        self._engine = engine
        self._alarms = alarms
        self._limits = limits
        self._store = AuditStore(engine)
        self._pending: deque[Seen] = deque(maxlen=_PENDING)
        self._told: dict[str, _Told] = {}
        self._closed: deque[str] = deque(maxlen=1000)
        self._asked_ms = 0

    def took(self, links: Sequence[Link]) -> None:
        """Links that are in the table from now on."""
        self._pending.extend(map(seen, links))

    async def run(self) -> None:
        """Begin from the table, then look every LOOK_S; begin again after a failure."""
        while True:
            try:
                watch = await self._begin()
                while True:
                    while self._pending:
                        watch.add(self._pending.popleft())
                    await self._tell(watch.going_on(now_ms()))
                    await asyncio.sleep(LOOK_S)
            except AWAY as exc:
                log.warning("audit_watch_waits", error=str(exc)[:300])
            except Exception:
                log.exception("audit_watch_failed")
            await asyncio.sleep(LOOK_S)

    async def _begin(self) -> Watch:
        since = now_ms() - self._limits.horizon_ms

        def read(client: Client) -> Watch:
            watch = Watch(self._limits, self._store.places(client))
            for one in self._store.since(client, since):
                watch.add(one)
            return watch

        return await self._engine.read(read)

    async def _tell(self, anomalies: list[Anomaly]) -> None:
        now = now_ms()
        if now - self._asked_ms > ASK_MS:
            raised = await self._engine.read(self._raised)
            self._told = {**{i: told for i, told in raised.items() if told.event_id not in self._closed}, **self._told}
            self._asked_ms = now
        going_on = {one.incident: one for one in anomalies}
        for incident, one in going_on.items():
            told = _Told(f"{incident}.{one.since_ms}{_RAISED}", one.level.value, one.title)
            if incident not in self._told and await self._alarms.tell(_alert(one, now), told.event_id):
                self._told[incident] = told
        for incident, told in [item for item in self._told.items() if item[0] not in going_on]:
            event_id = told.event_id.removesuffix(_RAISED) + _RESOLVED
            if await self._alarms.tell(_over(incident, told, now), event_id):
                self._closed.append(told.event_id)
                del self._told[incident]

    def _raised(self, client: Client) -> dict[str, _Told]:
        """Anomalies that were raised and not resolved, by incident."""
        rows = client.query(
            "SELECT incident, argMaxIf(event_id, at, NOT resolved), argMaxIf(level, at, NOT resolved), "  # noqa: S608
            f"argMaxIf(title, at, NOT resolved) FROM {self._engine.database}.alert_events FINAL "
            "WHERE startsWith(event_id, {prefix:String}) GROUP BY incident HAVING NOT argMax(resolved, (at, sequence))",
            parameters={"prefix": PREFIX},
        ).result_rows
        return {str(incident): _Told(*map(str, told)) for incident, *told in rows}


def _alert(one: Anomaly, now: int) -> Alert:
    return Alert(
        incident=one.incident, level=one.level, title=one.title,
        message=f"{one.message}. `cypria audit` shows the calls", rule=one.rule, at_ms=now, n=one.n,
        threshold=one.threshold,
    )  # fmt: skip


def _over(incident: str, told: _Told, now: int) -> Alert:
    return Alert(
        incident=incident, level=AlertLevel(told.level), title=told.title,
        message="it is over: nothing more of the kind has come for a while", at_ms=now, resolved=True,
    )  # fmt: skip
