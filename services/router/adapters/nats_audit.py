"""Audit records to `cypria.audit.router`: kept in memory until the stream has them, never in anybody's way."""

import asyncio
import contextlib
import secrets
from collections import deque

from nats.errors import Error as NatsError
from prometheus_client import Counter

from schemas import subjects
from schemas.v1.alerts import AuditRecord
from schemas.v1.cloudevent import CONTENT_TYPE, dump, envelope
from services._runtime.bus import Bus, publish_durable
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_LIMIT = 10_000
_DROPPED = Counter("cypria_router_audit_dropped_total", "Audit records dropped because too many waited for the bus")


class AuditLog:
    """A bounded spool and one task that publishes it in order."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._spool: deque[tuple[str, bytes, asyncio.Future[bool]]] = deque()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="audit")

    async def stop(self, timeout_s: float = 1.0) -> None:
        """Publish what waits, for at most ``timeout_s``, and end."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        await end(self._task)
        if self._spool:
            log.error("audit_records_lost", count=len(self._spool))

    def record(self, record: AuditRecord) -> asyncio.Future[bool]:
        """Take a record; returns at once. The oldest goes when too many wait.

        The future tells, when it is known, whether the stream has the record.
        """
        if len(self._spool) >= _LIMIT:
            _answer(self._spool.popleft()[2], stored=False)
            _DROPPED.inc()
        event_id = f"audit.{secrets.token_hex(12)}"
        stored: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        payload = dump(envelope("audit", event_id, "router", record.at_ms, record))
        self._spool.append((event_id, payload, stored))
        self._drained.clear()
        self._wake.set()
        return stored

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            while self._spool:
                event_id, payload, stored = self._spool[0]
                try:
                    headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
                    await publish_durable(self._bus.js, subjects.audit("router"), payload, headers)
                except (NatsError, TimeoutError, OSError) as exc:
                    log.warning("audit_not_published", waiting=len(self._spool), error=repr(exc))
                    await asyncio.sleep(0.5)
                    continue
                if self._spool and self._spool[0][0] == event_id:
                    self._spool.popleft()
                _answer(stored, stored=True)
            self._wake.clear()
            self._drained.set()


def _answer(future: asyncio.Future[bool], *, stored: bool) -> None:
    if not future.done():
        future.set_result(stored)
