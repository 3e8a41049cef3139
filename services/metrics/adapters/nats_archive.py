"""EVENTS and ALERTS into their tables. A row is its event id, so a message taken in twice is one row."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from clickhouse_connect.driver.client import Client

from schemas import streams, subjects
from services._runtime.bus import TRANSIENT, Bus, dead_letter
from services._runtime.reader import PositionError, SequenceReader, StreamMessage, life_of
from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters
from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.adapters.nats_positions import still_holds
from services.metrics.domain import archive
from services.metrics.domain.chain import next_life

log = get_logger(__name__)

_BATCH = 500
_EVERY_S = 0.5
_CONSUMER = "metrics"


@dataclass(frozen=True)
class Shelf:
    """One stream and the table it goes to; ``row`` makes a row up to the event id, or None, or raises ValueError."""

    stream: str
    subject: str | None
    table: str
    columns: Sequence[str]
    row: Callable[[bytes], list[Any] | None]


TESTS = Shelf(streams.EVENTS.name, subjects.EVENT, "test_events", archive.TEST_COLUMNS, archive.test_row)
ALERTS = Shelf(streams.ALERTS.name, None, "alert_events", archive.ALERT_COLUMNS, archive.alert_row)
SHELVES = (TESTS, ALERTS)


class Filler(ABC):
    """Fills a table from a stream. `run` goes on until it is cancelled.

    The position in the stream goes into the table with what was made of the messages up to it, in one insert: after a
    crash whoever comes next goes on from there, and takes nothing in twice that would count twice.
    """

    def __init__(self, bus: Bus, stream: str, subject: str | None, table: str) -> None:
        self._bus = bus
        self._stream = stream
        self._subject = subject
        self.table = table
        self.problem: str | None = "has not read its position yet"

    def missing(self) -> str | None:
        """For readiness checks."""
        return self.problem

    async def run(self) -> None:
        """Fill, and begin again from the stored position after every failure."""
        while True:
            pause = 0.5
            try:
                await self._fill()
            except PositionError as exc:
                self.problem, pause = str(exc), 5.0
                log.error("archive_blocked", table=self.table, reason=str(exc))
            except AWAY as exc:
                self.problem = f"ClickHouse does not answer ({type(exc).__name__})"
                log.warning("archive_waits", table=self.table, error=str(exc)[:300])
            except TRANSIENT as exc:
                self.problem = "NATS does not answer"
                log.warning("archive_waits", table=self.table, error=repr(exc))
            except Exception as exc:
                self.problem, pause = f"failed and starts again ({type(exc).__name__})", 2.0
                log.exception("archive_failed", table=self.table)
            await asyncio.sleep(pause)

    @abstractmethod
    async def _begin(self, created: str) -> int:
        """The position in the stream that was created then; 0 where none of it was taken in."""

    @abstractmethod
    async def _take(self, created: str, messages: list[StreamMessage]) -> None:
        """Put messages and the position after them into the table, in one insert."""

    async def _resume(self, life: str, sequence: int, time_ms: int) -> tuple[str, int]:
        """The life of the stream to go on in and the position there, where a life's position was this.

        After a power cut, or restored from a backup, a stream may have lost its end and put other messages into the
        same places. Then it goes on as its next life, behind what both have in common. ``time_ms`` is the broker's time
        of the last message taken in, 0 where that is not known.
        """
        if not sequence or await still_holds(self._bus.js, self._stream, sequence, time_ms):
            return life, sequence
        common = await self._common(life, sequence)
        log.error("stream_lost_its_end", stream=self._stream, taken_in=sequence, kept=common)
        return next_life(life), common

    @abstractmethod
    async def _common(self, life: str, sequence: int) -> int:
        """The last sequence, or one before, up to which the stream holds what was taken in; at this one it does not."""

    async def _fill(self) -> None:
        # A server that was away may have come back with less: then the position is looked at again.
        generation = self._bus.generation
        info = await self._bus.js.stream_info(self._stream)
        created = life_of(info)
        position = await self._begin(created)
        reader = SequenceReader(self._bus, self._stream, self._subject, after=position)
        await reader.open(expect_created=created)
        self.problem = None
        try:
            while self._bus.generation == generation:
                messages = await reader.fetch(_BATCH, _EVERY_S)
                if messages and self._bus.generation == generation:
                    await self._take(created, messages)
        finally:
            await asyncio.shield(reader.close())

    async def _bury(self, message: StreamMessage, exc: ValueError) -> None:
        """Put what cannot be read into the DLQ."""
        meters.DEAD_LETTERS.labels(self._stream).inc()
        await dead_letter(
            self._bus.js, stream=self._stream, consumer=_CONSUMER, subject=message.subject, sequence=message.sequence,
            payload=message.data, reason=_short(exc),
        )  # fmt: skip


class Archive(Filler):
    """Events into the table of a shelf."""

    def __init__(self, bus: Bus, engine: ClickHouse, shelf: Shelf) -> None:
        super().__init__(bus, shelf.stream, shelf.subject, shelf.table)
        self._engine = engine
        self._shelf = shelf
        self._life = ""

    async def _begin(self, created: str) -> int:
        known = await self._engine.read(lambda client: self._position(client, created))
        self._life, position = await self._resume(*known)
        return position

    async def _common(self, _life: str, _sequence: int) -> int:
        """None of it: an event that is taken in twice is one row."""
        return 0

    async def _take(self, created: str, messages: list[StreamMessage]) -> None:
        rows = [*await self._rows(created, messages), self._position_row(created, messages[-1])]
        await self._engine.write(partial(self._insert, rows))

    def _insert(self, rows: list[list[Any]], client: Client) -> None:
        self._engine.insert(client, self.table, self._shelf.columns, rows, {})

    async def _rows(self, created: str, messages: list[StreamMessage]) -> list[list[Any]]:
        rows = []
        for message in messages:
            try:
                row = self._shelf.row(message.data)
            except ValueError as exc:
                await self._bury(message, exc)
            else:
                if row is not None:
                    rows.append([*row, created, message.sequence])
        return rows

    def _position_row(self, created: str, last: StreamMessage) -> list[Any]:
        empty: dict[str, Any] = {
            "at": datetime.fromtimestamp(last.time_ms / 1000, UTC), "version": 0, "share_bp": 0, "resolved": False,
            "value": None, "bound": None, "threshold": None, "n": None, "event_id": f"@{self._life}",
            "stream_created": created, "sequence": last.sequence,
        }  # fmt: skip
        return [empty.get(column, "") for column in self._shelf.columns]

    def _position(self, client: Client, created: str) -> tuple[str, int, int]:
        """(life, sequence, broker's time in Unix ms) of the last message of a stream's last life that was taken in."""
        self._engine.settle(client, self.table)
        rows = client.query(
            "SELECT substring(event_id, 2), max(sequence), toUnixTimestamp64Milli(argMax(at, sequence)) "  # noqa: S608
            f"FROM {self._engine.database}.{self.table} WHERE startsWith(event_id, {{position:String}}) "
            "GROUP BY event_id ORDER BY event_id DESC LIMIT 1",
            parameters={"position": f"@{created}"},
        ).result_rows
        return (str(rows[0][0]), int(rows[0][1]), int(rows[0][2])) if rows else (created, 0, 0)


def _short(exc: ValueError) -> str:
    """A reason without the values: what could not be read may hold what must not be logged."""
    errors = getattr(exc, "errors", None)
    if not callable(errors):
        return str(exc)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors(include_input=False)[:5])
