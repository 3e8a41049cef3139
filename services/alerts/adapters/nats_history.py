"""Reads ALERTS from its start and keeps the history in memory."""

import asyncio
import contextlib

from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import streams
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CloudEvent
from services._runtime.bus import Bus
from services._runtime.reader import PositionError, SequenceReader
from services._runtime.telemetry import get_logger
from services.alerts.adapters import meters
from services.alerts.domain.history import History

log = get_logger(__name__)

_BATCH = 256
_REST_S = 0.05


class HistoryFeed:
    """Owns the history; ``history`` is replaced when the stream is another one."""

    def __init__(self, bus: Bus, retention: int) -> None:
        self._bus = bus
        self._retention = retention
        self._task: asyncio.Task[None] | None = None
        self.history = History(retention)
        self.loaded = asyncio.Event()

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._run(), name="history")

    async def stop(self) -> None:
        """End."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def missing(self) -> str | None:
        """For readiness checks."""
        return None if self.loaded.is_set() else "the history of alerts has not been read yet"

    async def _run(self) -> None:
        while True:
            try:
                await self._read()
            except PositionError as exc:
                log.error("history_starts_over", reason=str(exc))
            except (NatsError, TimeoutError, OSError) as exc:
                log.warning("history_waits", error=repr(exc))
            await asyncio.sleep(0.5)

    async def _read(self) -> None:
        self.history = History(self._retention)
        reader = SequenceReader(self._bus, streams.ALERTS.name)
        await reader.open()
        self.history.created = reader.stream_created
        try:
            while True:
                # A fetch of many waits for many: the first one is taken as soon as it comes.
                messages = await self._take(reader, 1, 1.0)
                if messages:
                    await self._take(reader, _BATCH, _REST_S)
                if self._bus.connected and (not messages or reader.position >= reader.last_sequence):
                    self.loaded.set()
                meters.HISTORY.set(len(self.history.items))
        finally:
            await asyncio.shield(reader.close())

    async def _take(self, reader: SequenceReader, batch: int, timeout_s: float) -> int:
        messages = await reader.fetch(batch, timeout_s)
        for message in messages:
            self._add(message.sequence, message.data)
        return len(messages)

    def _add(self, sequence: int, payload: bytes) -> None:
        # What is no alert is put into the DLQ by the deliveries' consumer, which says so.
        with contextlib.suppress(ValidationError):
            event = CloudEvent[Alert].model_validate_json(payload)
            self.history.add(sequence, event.id, event.data)
        self.history.position = sequence
