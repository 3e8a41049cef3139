"""What the streams hold of one unit of one test, page by page, and having its fact batches overwritten."""

import asyncio
import contextlib

from nats.js.errors import NotFoundError

from schemas import streams, subjects
from schemas.subjects import PARTITIONS
from schemas.v1.units import UnitFact, UnitQuery, UnitReply
from services._runtime.bus import Bus, erase
from services._runtime.clock import monotonic
from services._runtime.reader import SequenceReader, StreamMessage, life_of
from services._runtime.telemetry import get_logger
from services.metrics.adapters import wire
from services.metrics.adapters.nats_positions import sequence_before
from services.metrics.adapters.nats_window_log import WindowLog
from services.metrics.domain.records import FactBatch
from services.metrics.domain.units import carried

log = get_logger(__name__)

PAGE_S = 1.5
"""A page ends after so long; what comes after is the next page's."""
AT_ONCE = 64
"""Messages looked at before others have their turn on the loop."""
MAX_FACTS = 1000
FOLDED_WITHIN_S = 3.0
_LOOK_S = 0.1
_MARGIN_MS = 2_000


class NotErasedError(RuntimeError):
    """A unit without a tombstone: nothing of it may be deleted."""


class UnitSearch:
    """Reads streams on behalf of those who may ask; it keeps nothing. All raise NatsError."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def page(self, question: UnitQuery) -> UnitReply:
        """One page of either stream. Raises NotErasedError."""
        partition = int(question.unit, 16) % PARTITIONS
        windows = question.stream == "WINDOWS"
        stream = question.stream
        subject = subjects.window(partition) if windows else subjects.metric(partition)
        after = question.after
        if not after and question.since_ms:
            pattern = subjects.WINDOW if windows else subjects.METRIC
            after = await sequence_before(self._bus.js, stream, pattern, question.since_ms - _MARGIN_MS)
        reply = UnitReply(last=after)
        end = await self._end(stream, subject)
        folded = await self._folded(partition, end, question) if question.erase else 0
        reader = SequenceReader(self._bus, stream, subject, after=after)
        deadline = monotonic() + PAGE_S
        seen = 0
        try:
            while reply.last < end and seen < question.limit and len(reply.facts) < MAX_FACTS:
                if monotonic() > deadline:
                    break
                messages = await reader.fetch(min(AT_ONCE, question.limit - seen), 1.0)
                if not messages:
                    break
                for message in messages:
                    if windows:
                        _windows(reply, question, message)
                    else:
                        await self._metrics(reply, question, message, folded)
                    reply.last = message.sequence
                seen += len(messages)
                await asyncio.sleep(0)
        finally:
            await reader.close()
        reply.complete = reply.last >= end
        return reply

    async def _end(self, stream: str, subject: str) -> int:
        try:
            return int((await self._bus.js.get_msg(stream, subject=subject, direct=False)).seq or 0)
        except NotFoundError:
            return 0

    async def _folded(self, partition: int, end: int, question: UnitQuery) -> int:
        """Up to which sequence of METRICS everything is in stored windows, once ``end`` is or some time has passed.

        The message at the watermark itself stays: it is what the writer knows the stream by.
        """
        try:
            key = f"$KV.{streams.ERASURES.name}.{question.test_id}.{question.unit}"
            await self._bus.js.get_msg(f"KV_{streams.ERASURES.name}", subject=key, direct=False)
        except NotFoundError:
            raise NotErasedError("this unit has not been erased from this test: nothing of it is deleted") from None
        created = life_of(await self._bus.js.stream_info(streams.METRICS.name))
        windows = WindowLog(self._bus, partition)
        deadline = monotonic() + FOLDED_WITHIN_S
        while True:
            last = await windows.last()
            watermark = None
            if last is not None:
                with contextlib.suppress(wire.BadMessageError):
                    watermark = wire.decode_window(last.data).watermark
            folded = watermark.last_seq if watermark is not None and watermark.stream_created == created else 0
            if folded >= end or monotonic() > deadline:
                return folded
            await asyncio.sleep(_LOOK_S)

    async def _metrics(self, reply: UnitReply, question: UnitQuery, message: StreamMessage, folded: int) -> None:
        if question.unit.encode() not in message.data:
            return
        try:
            batch, _ = wire.decode_batch(message.data, int(question.unit, 16) % PARTITIONS)
        except wire.BadMessageError:
            return  # it was dead-lettered with its reason
        facts = _facts(batch, question, message.time_ms)
        if not facts:
            return
        reply.batches += 1
        reply.facts += facts
        if not question.erase:
            return
        if message.sequence < folded:
            if await erase(self._bus.js, streams.METRICS.name, message.sequence):
                log.info("fact_batch_erased", test_id=question.test_id, sequence=message.sequence)
            reply.erased += 1
        else:
            reply.left += 1


def _windows(reply: UnitReply, question: UnitQuery, message: StreamMessage) -> None:
    if question.test_id.encode() not in message.data:
        return
    unit = int(question.unit, 16)
    names: set[str] = set()
    try:
        found = wire.decode_new_units(message.data)
    except wire.BadMessageError:
        return
    for new in found:
        if new.test == question.test_id:
            names.update(carried(new, unit))
    if names:
        reply.held = sorted({*reply.held, *names})
        reply.windows += 1
        reply.first_ms = reply.first_ms or message.time_ms
        reply.last_ms = message.time_ms


def _facts(batch: FactBatch, question: UnitQuery, at_ms: int) -> list[UnitFact]:
    test, unit = question.test_id, question.unit
    found = [
        UnitFact(at_ms=at_ms, kind="admitted", variant=arm.variant, share_bp=arm.share_bp)
        for arm in batch.admitted
        if arm.test == test and unit in arm.units
    ]
    found += [
        UnitFact(
            at_ms=at_ms, kind=fact.kind, variant=fact.variant, share_bp=fact.share_bp,
            outcome=fact.outcome if fact.kind == "final" else None, latency_us=fact.latency_us, ttft_us=fact.ttft_us,
            prompt_tokens=fact.prompt_tokens, completion_tokens=fact.completion_tokens, cost_nano=fact.cost_nano,
        )
        for fact in batch.facts
        if fact.test == test and fact.unit == unit
    ]  # fmt: skip
    found += [
        UnitFact(
            at_ms=at_ms, kind="feedback", variant=said.variant, share_bp=said.share_bp, thumbs_up=said.thumbs_up,
            converted=said.converted, score=None if said.score_micro is None else said.score_micro / 1e6,
        )
        for said in batch.feedback
        if said.test == test and said.unit == unit
    ]  # fmt: skip
    return found
