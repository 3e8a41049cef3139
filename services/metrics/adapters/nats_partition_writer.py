"""The writer of one partition: facts from METRICS into one window a second on WINDOWS, exactly once.

Its position lives in its result: the watermark of the last stored window. Nothing is acknowledged.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection

from schemas import streams, subjects
from services._runtime.bus import TRANSIENT, Bus, dead_letter
from services._runtime.clock import monotonic, now_ms
from services._runtime.reader import PositionError, SequenceReader, StreamMessage, life_of
from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters, wire
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_positions import sequence_before, still_holds
from services.metrics.adapters.nats_window_log import ForeignError, StoredWindow, SupersededError, WindowLog
from services.metrics.domain.fold import BYTES_PER_CELL, BYTES_PER_FACT, Fold
from services.metrics.domain.records import FactBatch, Watermark
from services.metrics.domain.units import Erased, UnitBook

log = get_logger(__name__)

TAKE_OVER_S = 3.0
"""A writer that has been silent for this long is replaced by one that stands by."""
TICK_MS = 500
"""Windows go out in the middle of each second of the wall clock, far from where a tick of verdicts ends."""
BATCH = 256
FORGET_EVERY_S = 60.0
REWIND_MS = 60_000
"""How much longer ago than the last known message reading begins again when METRICS has lost its end."""
CHECK_EVERY_S = 10.0
"""A stream that was replaced under a standing connection is noticed after this long."""
_BLOCKED_RETRY_S = 5.0
_CONSUMER = "metrics"


class _ReloadError(Exception):
    """The state in memory can no longer be trusted: read it again from the last window."""


class PartitionWriter:
    """One partition's writer. `run` goes on until it is cancelled.

    ``live_tests`` gives the ids of tests that have not ended, or None while they are not known; ``erased`` the units
    that were erased.
    """

    def __init__(
        self,
        bus: Bus,
        partition: int,
        writer: str,
        live_tests: Callable[[], Collection[str] | None],
        alarms: Alarms,
        erased: Callable[[], Erased],
    ) -> None:
        self._bus = bus
        self._partition = partition
        self._writer = writer
        self._live_tests = live_tests
        self._alarms = alarms
        self._erased = erased
        self._log = WindowLog(bus, partition)
        self._verbose = bus.settings.logging.verbose_metrics
        self._poison: dict[int, str] = {}
        self._last_seq = 0
        self._generation = 0
        self._next_forget = 0.0
        self._next_check = 0.0
        self.problem: str | None = "has not read its position yet"
        self.writing = False

    def missing(self) -> str | None:
        """For readiness checks; standing by while another process writes is fine."""
        return self.problem

    async def run(self) -> None:
        """Write, stand by while another does, and begin again after every failure."""
        pause = 0.2
        while True:
            try:
                await self._write()
            except SupersededError as exc:
                log.warning("standing_by", partition=self._partition, reason=str(exc))
                self._now(writing=False, problem=None)
                await self._stand_by()
                pause = 0.2
                continue
            except (_ReloadError, ForeignError) as exc:
                log.warning("reloading", partition=self._partition, reason=str(exc))
                self._now(writing=False, problem="is reading its position")
            except PositionError as exc:
                log.error("partition_blocked", partition=self._partition, reason=str(exc))
                self._now(writing=False, problem=str(exc))
                self._alarms.critical(f"metrics.blocked.{self._partition}", "Facts are not aggregated", str(exc))
                await asyncio.sleep(_BLOCKED_RETRY_S)
                continue
            except TRANSIENT as exc:
                log.warning("partition_waits", partition=self._partition, error=repr(exc))
                self._now(writing=False, problem="NATS does not answer")
            except Exception:
                log.exception("partition_failed", partition=self._partition)
                self._now(writing=False, problem="failed and starts again")
                pause = min(pause * 2, _BLOCKED_RETRY_S)
            await asyncio.sleep(pause)

    def _now(self, *, writing: bool, problem: str | None) -> None:
        self.writing, self.problem = writing, problem
        meters.WRITING.labels(str(self._partition)).set(writing)

    async def _write(self) -> None:
        fold, reader = await self._load()
        try:
            self._now(writing=True, problem=None)
            deadline = monotonic() + self._until_tick()
            while True:
                remaining = deadline - monotonic()
                if remaining <= 0:
                    fold.units.erase(self._erased())
                    await self._publish(fold)
                    self._forget(fold)
                    deadline = monotonic() + self._until_tick()
                    continue
                for message in await reader.fetch(BATCH, max(remaining, 0.005)):
                    await self._take(fold, message)
                await self._same_streams(fold)
        finally:
            await asyncio.shield(reader.close())

    def _until_tick(self) -> float:
        offset = (TICK_MS + 10 * self._partition - now_ms()) % 1000
        return (offset or 1000) / 1000

    async def _load(self) -> tuple[Fold, SequenceReader]:
        """State as the last stored window says, and a reader of what comes after it."""
        self._generation = self._bus.generation
        self._next_check = monotonic() + CHECK_EVERY_S
        last = await self._log.last()
        watermark, units = Watermark(), UnitBook()
        self._last_seq = last.sequence if last else 0
        last = await self._pass_over(last)
        if last is not None:
            try:
                window = wire.decode_window(last.data)
                watermark = window.watermark
                await self._rebuild(units, window.rebuild_from or last.sequence, last.sequence)
            except (wire.BadMessageError, ValueError) as exc:
                raise PositionError(
                    f"the window at WINDOWS sequence {last.sequence} of partition {self._partition} cannot be read "
                    f"({exc}): remove that message from the stream, and the one before it becomes the position"
                ) from None
        units.erase(self._erased())
        position = await self._position(watermark)
        reader = SequenceReader(self._bus, streams.METRICS.name, subjects.metric(self._partition), after=position)
        await reader.open(expect_created=watermark.stream_created or None)
        fold = Fold(self._partition, self._writer, watermark, units)
        fold.stream_created, fold.last_seq = reader.stream_created, reader.position
        log.info(
            "partition_opened", partition=self._partition, position=fold.last_seq, window=self._last_seq,
            tests=len(units.tests),
        )  # fmt: skip
        return fold, reader

    async def _pass_over(self, last: StoredWindow | None) -> StoredWindow | None:
        """The last window of a writer's, where what is stored behind it is no window and was not put there by one."""
        if last is None or not last.foreign:
            return last
        log.error("window_foreign", partition=self._partition, subject=self._log.subject, sequence=last.sequence)
        return await self._log.before(last.sequence)

    async def _position(self, watermark: Watermark) -> int:
        """Where to go on reading METRICS: behind the watermark, unless METRICS lost its end since.

        Going back is safe, since a batch that was folded is known by its number and dropped.
        """
        created = life_of(await self._bus.js.stream_info(streams.METRICS.name))
        position = watermark.last_seq
        if position == 0 or created != watermark.stream_created:
            return position
        if await still_holds(self._bus.js, streams.METRICS.name, position, watermark.last_time_ms):
            return position
        back = await sequence_before(
            self._bus.js, streams.METRICS.name, subjects.METRIC, watermark.last_time_ms - REWIND_MS
        )
        text = (
            f"METRICS no longer holds what partition {self._partition} read at sequence {position}: the server lost "
            f"the end of the stream, such as in a power cut. Reading again from {back}; what it lost stays lost"
        )
        log.error("facts_stream_lost_its_end", partition=self._partition, position=position, back=back)
        self._alarms.critical(f"metrics.rewound.{self._partition}.{position}", "Facts may have been lost", text)
        return back

    async def _rebuild(self, units: UnitBook, start: int, end: int) -> None:
        """Fill the seen-sets from the stored windows start..end of this partition."""
        reader = SequenceReader(self._bus, streams.WINDOWS.name, self._log.subject, after=start - 1)
        try:
            async for message in reader.catch_up():
                if message.sequence <= end:
                    with contextlib.suppress(wire.BadMessageError):  # nobody's: every window of a writer's can be read
                        units.replay(wire.decode_new_units(message.data), message.sequence, message.time_ms)
                if message.sequence >= end:
                    break
        finally:
            await reader.close()

    async def _take(self, fold: Fold, message: StreamMessage) -> None:
        reason = self._poison.pop(message.sequence, None)
        batch: FactBatch | None = None
        if reason is None:
            try:
                batch, reasons = wire.decode_batch(message.data, self._partition)
                reason = "; ".join(reasons[:5])
            except wire.BadMessageError as exc:
                reason = str(exc)
        room = 0.9 * self._bus.nc.max_payload
        count = len(batch.facts) + len(batch.feedback) if batch is not None else 0
        if count * BYTES_PER_FACT + 8 * BYTES_PER_CELL > room:
            reason = f"{count} facts in one batch do not fit in one window message"
            batch = None
        if reason:
            await self._dead_letter(message, reason)
        if batch is None:
            fold.skip(message.sequence, message.time_ms)
            return
        if fold.size + count * BYTES_PER_FACT > room:
            await self._publish(fold)
        missing = fold.missing_batches
        try:
            counted = fold.fold(batch, message.sequence, message.time_ms)
        except Exception as exc:
            # Part of the batch may be in the open window: begin again from the last stored one, without it.
            log.exception("fold_failed", partition=self._partition, sequence=message.sequence)
            self._poison[message.sequence] = f"folding failed: {type(exc).__name__}: {exc}"
            raise _ReloadError("a batch could not be folded") from exc
        meters.FACTS.inc(count if counted else 0)
        meters.REPEATED_BATCHES.inc(0 if counted else 1)
        if fold.missing_batches > missing:
            self._report_missing(batch, fold.missing_batches - missing)

    def _report_missing(self, batch: FactBatch, count: int) -> None:
        meters.MISSING_BATCHES.inc(count)
        text = (
            f"{count} fact batches of router {batch.router_epoch} before number {batch.n} of partition "
            f"{self._partition} never came: they were dropped by the router's spool or aged out of METRICS"
        )
        log.error("fact_batches_missing", partition=self._partition, router_epoch=batch.router_epoch, count=count)
        incident = f"metrics.missing.{batch.router_epoch}.{self._partition}.{batch.n}"
        self._alarms.critical(incident, "Facts were lost", text)

    async def _dead_letter(self, message: StreamMessage, reason: str) -> None:
        meters.DEAD_LETTERS.labels(streams.METRICS.name).inc()
        await dead_letter(
            self._bus.js, stream=streams.METRICS.name, consumer=_CONSUMER, subject=message.subject,
            sequence=message.sequence, payload=message.data, reason=reason,
        )  # fmt: skip

    async def _publish(self, fold: Fold) -> None:
        window = fold.close()
        self._last_seq = await self._log.append(wire.encode_window(window), self._last_seq)
        fold.stored(window.new_units, self._last_seq)
        meters.WINDOWS.inc()
        for cell in window.cells if self._verbose else ():
            mean_ms = cell.latency.total / cell.latency.n / 1000 if cell.latency.n else None
            log.info(
                "window", partition=self._partition, sequence=self._last_seq, test_id=cell.test, variant=cell.variant,
                share_bp=cell.share_bp, admitted=cell.admitted, done=cell.done, overdue=cell.overdue,
                outcomes=cell.outcomes, mean_latency_ms=mean_ms,
            )  # fmt: skip

    def _forget(self, fold: Fold) -> None:
        if monotonic() < self._next_forget:
            return
        self._next_forget = monotonic() + FORGET_EVERY_S
        live = self._live_tests()
        if live is not None:
            fold.units.forget(live, now_ms())
        meters.UNITS.labels(str(self._partition)).set(sum(len(u.seen_test) for u in fold.units.tests.values()))

    async def _same_streams(self, fold: Fold) -> None:
        """After a reconnect, and now and then: go on only if METRICS and the last window are still what they were."""
        generation = self._bus.generation
        if self._generation == generation and monotonic() < self._next_check:
            return
        self._next_check = monotonic() + CHECK_EVERY_S
        info = await self._bus.js.stream_info(streams.METRICS.name)
        if life_of(info) != fold.stream_created:
            raise _ReloadError("the stream METRICS was made anew")
        last = await self._log.last()
        if (last.sequence if last else 0) != self._last_seq:
            raise _ReloadError("the stored windows changed while disconnected")
        self._generation = generation

    async def _stand_by(self) -> None:
        """Return once the other writer has stored nothing for TAKE_OVER_S while the server and this process ran."""
        seen, since, looked = -1, monotonic(), monotonic()
        while True:
            now = monotonic()
            if now - looked > 1:
                since = now  # this process was stopped itself: the other one's silence proves nothing
            looked = now
            if now - since >= TAKE_OVER_S:
                break
            try:
                last = await self._log.last()
            except TRANSIENT:
                seen, since = -1, monotonic()
            else:
                sequence = last.sequence if last else 0
                if sequence != seen:
                    seen, since = sequence, monotonic()
            await asyncio.sleep(0.25)
        log.warning("taking_over", partition=self._partition, window=seen)
