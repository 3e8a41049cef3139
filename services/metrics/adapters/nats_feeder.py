"""WINDOWS into ClickHouse, exactly once: the position is a row of the table that the sums go to."""

import asyncio

from schemas import streams
from services._runtime.bus import TRANSIENT, Bus, dead_letter
from services._runtime.clock import monotonic, now_ms
from services._runtime.reader import PositionError, SequenceReader, StreamMessage, life_of
from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters, wire
from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.adapters.clickhouse_store import NOWHERE, PositionTakenError, StoppedError, WindowStore
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_positions import still_holds
from services.metrics.domain.rows import Rows

log = get_logger(__name__)

BATCH = 1000
"""Windows in one insert at most: it stays one block, and a backlog is taken in steps."""
TICK_MS = 650
"""Inserts go out once a second, shortly after the partitions' windows (`nats_partition_writer.TICK_MS`)."""
QUIET_S = 4.0
"""Windows in which nothing happened only move the position, this often."""
TAKE_OVER_S = 6.0
"""Longer than QUIET_S, so that a quiet writer is not taken for a dead one."""
_CONSUMER = "metrics"


class Feeder:
    """Takes WINDOWS into ClickHouse. `run` goes on until it is cancelled; call `stop` first."""

    def __init__(self, bus: Bus, engine: ClickHouse, alarms: Alarms) -> None:
        self._bus = bus
        self._alarms = alarms
        self._engine = engine
        self._store = WindowStore(engine)
        self._stopping = False
        self._blocked: str | None = "has not read its position yet"

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._blocked or self._store.problem

    def stop(self) -> None:
        """Do not begin another attempt to insert."""
        self._stopping = True

    async def run(self) -> None:
        """Feed, stand by while another process does, and begin again after every failure."""
        while not self._stopping:
            pause = 0.5
            try:
                await self._feed()
            except PositionTakenError as exc:
                log.warning("feeder_stands_by", reason=str(exc))
                self._blocked = None
                await self._stand_by()
                continue
            except StoppedError:
                return
            except PositionError as exc:
                self._blocked, pause = str(exc), 5.0
                log.error("feeder_blocked", reason=str(exc))
                self._alarms.critical("metrics.feeder.blocked", "Aggregates do not reach ClickHouse", str(exc))
            except AWAY as exc:
                self._blocked = f"ClickHouse does not answer ({type(exc).__name__})"
                log.warning("feeder_waits", error=str(exc)[:300])
            except TRANSIENT as exc:
                self._blocked = "NATS does not answer"
                log.warning("feeder_waits", error=repr(exc))
            except Exception as exc:
                self._blocked, pause = f"failed and starts again ({type(exc).__name__})", 2.0
                log.exception("feeder_failed")
            await asyncio.sleep(pause)

    async def _feed(self) -> None:
        reader = SequenceReader(self._bus, streams.WINDOWS.name)
        info = await self._bus.js.stream_info(streams.WINDOWS.name)
        created = life_of(info)
        positions = await self._engine.read(self._store.positions)
        known = positions.get(created, NOWHERE)
        reader.position = position = known.sequence
        if position and not await still_holds(self._bus.js, streams.WINDOWS.name, position, known.time_ms):
            raise PositionError(
                f"WINDOWS no longer holds what ClickHouse took in at sequence {position}: the server lost the end of "
                "the stream, such as in a power cut, so the totals cannot be trusted. They are derived from WINDOWS: "
                f"stop metrics, {self._remedy()}, and start it again"
            )
        if positions and created not in positions:
            text = f"WINDOWS was made anew at {created}; ClickHouse goes on from its beginning, earlier totals stay"
            log.error("windows_stream_is_new", created=created, known=sorted(positions))
            self._alarms.critical(f"metrics.windows.recreated.{created}", "The stream WINDOWS was replaced", text)
        await reader.open(expect_created=created)
        if reader.gaps:
            text = f"{reader.gaps} windows after sequence {position} aged out of WINDOWS before ClickHouse had them"
            self._alarms.critical(f"metrics.windows.gap.{created}.{position}", "Totals in ClickHouse have a gap", text)
        if reader.stream_created != created:
            return
        self._blocked = None
        rows, since = Rows(), monotonic()
        try:
            while not self._stopping:
                messages = await reader.fetch(BATCH, ((TICK_MS - now_ms()) % 1000 or 1000) / 1000)
                await self._fold(rows, messages)
                if rows.counts or (rows.messages and monotonic() - since > QUIET_S):
                    await self._append(created, position, rows)
                    position, rows, since = rows.last_seq, Rows(), monotonic()
        finally:
            await asyncio.shield(reader.close())

    def _remedy(self) -> str:
        if self._engine.embedded:
            return f"remove the directory {self._engine.path}"
        return f"run TRUNCATE TABLE {self._engine.database}.window_cells"

    async def _fold(self, rows: Rows, messages: list[StreamMessage]) -> None:
        for message in messages:
            try:
                window = wire.decode_window(message.data)
            except wire.BadMessageError as exc:
                meters.DEAD_LETTERS.labels(streams.WINDOWS.name).inc()
                await dead_letter(
                    self._bus.js, stream=streams.WINDOWS.name, consumer=_CONSUMER, subject=message.subject,
                    sequence=message.sequence, payload=message.data, reason=str(exc),
                )  # fmt: skip
                text = f"Sequence {message.sequence}, on {message.subject}, is no window and counts for nothing ({exc})"
                self._alarms.critical(f"metrics.foreign.{message.sequence}", "WINDOWS holds what is no window", text)
                rows.skip(message.sequence, message.time_ms)
            else:
                rows.add(window, message.sequence, message.time_ms)

    async def _append(self, created: str, position: int, rows: Rows) -> None:
        table, last = rows.table(created), rows.last_seq
        with meters.INSERTS.time():
            await self._engine.write(
                lambda client: self._store.append(client, created, position, table, last, lambda: self._stopping)
            )
        meters.STORED_SEQUENCE.set(last)

    async def _stand_by(self) -> None:
        """Return once the position has not moved for TAKE_OVER_S while the engine answered."""
        seen: object = None
        since = monotonic()
        while monotonic() - since < TAKE_OVER_S and not self._stopping:
            try:
                now = await self._engine.read(self._store.positions)
            except AWAY:
                seen, since = None, monotonic()
            else:
                if now != seen:
                    seen, since = now, monotonic()
            await asyncio.sleep(0.5)
