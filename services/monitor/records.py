"""Reads the evidence of tests again, beside the watch: for reports and replays. One at a time, in a task of its own.

What was read is kept for a while: a test that still runs is read on from where it was, an ended one is not read twice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.v1.common import rfc3339
from schemas.v1.experiment import Experiment
from schemas.v1.query import QueryError
from schemas.v1.record import EvidenceQuery, EvidenceReply, RecordQuery, RecordReply
from services._runtime.bus import Bus
from services._runtime.reader import life_of
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.monitor.adapters.nats_experiments import Experiments
from services.monitor.adapters.nats_history import History, read_history
from services.monitor.adapters.nats_windows import STREAM, OnWindow, WindowFeed, WindowMessage, position_before
from services.monitor.domain import verdict
from services.monitor.domain.reading import Pager, Reading, Span, schedule

log = get_logger(__name__)

KEPT = 32
"""Readings, of about 5 MB each: pages look at several running tests, and a dropped one is read from its start."""
_CREATED_SLACK_MS = 5000
_QUIET = 20
"""Reads in a row without any window, while there should be some, after which the bus is taken to be away."""

_READ_S = 0.5
_BREATH_S = 0.002
"""Between batches: leases and verdicts of the tests under watch come first."""

_PAGE_BYTES = 4 << 20


class GoneError(LookupError):
    """The evidence is not there any more; the message says since when and why."""


@dataclass
class _Job:
    reading: Reading
    begin: int
    end: int
    read: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def progress(self) -> float:
        """How much of what there was has been read, from 0 to 1."""
        whole = self.end - self.begin
        return 1.0 if whole <= 0 else min(1.0, (self.reading.ticker.sequence - self.begin) / whole)


class Records:
    """Answers `cypria.verdict.record` and `cypria.verdict.evidence`."""

    def __init__(self, bus: Bus, experiments: Experiments, clock_skew_s: float) -> None:
        self._bus = bus
        self._experiments = experiments
        self._skew_ms = round(clock_skew_s * 1000)
        self._jobs: OrderedDict[tuple[str, int | None], _Job] = OrderedDict()
        self._turn = asyncio.Semaphore(1)

    async def stop(self) -> None:
        """End what is being read."""
        await end(*(job.task for job in self._jobs.values()))

    async def record(self, query: RecordQuery) -> RecordReply | QueryError:
        """What the evidence says, as far as it could be read in the time given."""
        history, configuration = await self._history(query.test_id)
        if configuration is None:
            return _unknown(query.test_id)
        reply = RecordReply(test_id=query.test_id, configuration=configuration, changes=history.changes)
        if not query.evidence:
            return reply
        try:
            job = await self._job(query, history, configuration)
        except GoneError as exc:
            reply.state, reply.progress, reply.message = "gone", 0.0, str(exc)
            return reply
        if job.task is not None:
            await asyncio.wait({job.task}, timeout=query.wait_ms / 1000)
            if job.task.done() and not job.task.cancelled() and (failure := job.task.exception()) is not None:
                raise failure
        reply.state = "complete" if job.reading.closed or job.read else "reading"
        evaluator = job.reading.evaluator
        reply.progress = 1.0 if reply.state == "complete" else job.progress
        if reply.state == "reading":
            reply.message = f"the evidence is still being read ({100 * reply.progress:.0f} %): ask again"
        reply.status = verdict.status(evaluator)
        # The evidence knows the ramp as the test began with it; how it stands now is the watch's to say.
        reply.status.ramp = None
        reply.series = job.reading.series().build(evaluator)
        reply.recent = job.reading.recent().build(evaluator)
        reply.verdict = job.reading.verdict()
        reply.metrics_summary = evaluator.totals.summaries()
        reply.ticks, reply.windows_seq = evaluator.ticks, evaluator.sequence
        return reply

    async def evidence(self, query: EvidenceQuery) -> EvidenceReply | QueryError:
        """A page of the evidence by tick."""
        history, configuration = await self._history(query.test_id)
        if configuration is None:
            return _unknown(query.test_id)
        try:
            begin = await self._begin(configuration, query.until)
        except GoneError as exc:
            return QueryError(message=str(exc), code="evidence_gone")
        span = Span(query.until, history.ended_ms)
        room = min(_PAGE_BYTES, self._bus.nc.max_payload // 2)
        pager = Pager(query.test_id, query.after or begin, span, query.limit, room)
        feed = WindowFeed(self._bus, pager.last, dead_letters=False)
        await feed.open()
        try:
            await _read_all(
                feed, feed.end, lambda m: pager.take(m.sequence, m.time_ms, m.window), lambda: pager.full
            )
        finally:
            await feed.close()
        if not pager.full:
            # A running test's open tick may still grow: it is in a later page.
            if span.until is not None:
                pager.close()
            pager.complete = True
        return EvidenceReply(
            test_id=query.test_id, configuration=configuration, changes=history.changes, ticks=pager.ticks,
            last=pager.last, complete=pager.complete,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------

    async def _history(self, test_id: str) -> tuple[History, Experiment | None]:
        history = await read_history(self._bus, test_id, self._experiments.by_id(test_id))
        return history, history.configuration

    async def _begin(self, experiment: Experiment, until: int | None) -> int:
        """The sequence after which the monitor began to read this test. Raises GoneError."""
        info = await self._bus.js.stream_info(STREAM)
        first, last = int(info.state.first_seq), int(info.state.last_seq)
        started = experiment.started_ms or experiment.created_ms
        began = f"the test began at {rfc3339(started)}"
        created = datetime.fromisoformat(life_of(info))
        created_ms = created.replace(tzinfo=created.tzinfo or UTC).timestamp() * 1000
        if created_ms > started + _CREATED_SLACK_MS or (until is not None and until > last):
            raise GoneError(f"the evidence is lost: {began}, but the stream WINDOWS is another one than then")
        begin = await position_before(self._bus, max(0, started - self._skew_ms))
        # The first windows of a test are its evidence's base: without them every number would be another one.
        if first > 1 and begin < first:
            raise GoneError(
                f"the evidence has aged out: {began}, and WINDOWS holds nothing from before sequence {first} any more"
            )
        return begin

    async def _job(self, query: RecordQuery, history: History, configuration: Experiment) -> _Job:
        key = (query.test_id, query.until)
        job = self._jobs.get(key)
        if job is None:
            begin = await self._begin(configuration, query.until)
            span = Span(query.until, history.ended_ms)
            job = self._jobs[key] = _Job(
                Reading(configuration, begin, span, schedule(history.changes)), begin, begin
            )
        elif job.reading.span.until is None:
            job.reading.follow(Span(None, history.ended_ms), schedule(history.changes))
        self._jobs.move_to_end(key)
        if not job.reading.closed and (job.task is None or job.task.done()):
            job.read = False
            job.task = asyncio.create_task(self._read(key, job), name=f"record-{query.test_id}")
        # The longest unused ones go, but none that somebody waits for: it would be begun again, and never be finished.
        idle = [other for other, held in self._jobs.items() if held.task is None or held.task.done()]
        for old in idle[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[old]
        return job

    async def _read(self, key: tuple[str, int | None], job: _Job) -> None:
        async with self._turn:
            try:
                await self._read_on(job)
            except Exception as exc:
                log.warning("evidence_not_read", test_id=key[0], error=repr(exc))
                self._jobs.pop(key, None)
                raise

    async def _read_on(self, job: _Job) -> None:
        reading = job.reading

        def take(message: WindowMessage) -> None:
            reading.take(message.sequence, message.time_ms, message.window)

        feed = WindowFeed(self._bus, reading.ticker.sequence, dead_letters=False)
        await feed.open()
        try:
            until = reading.span.until
            job.end = feed.end if until is None else min(feed.end, until)
            await _read_all(feed, job.end, take, lambda: reading.closed)
        finally:
            await feed.close()
        if until is not None:
            reading.close()
        job.read = True


async def _read_all(feed: WindowFeed, end: int, on_window: OnWindow, enough: Callable[[], bool]) -> None:
    """Read up to ``end``. Raises TimeoutError when the bus does not hand over what it has."""
    quiet = 0
    while not enough() and feed.position < end:
        if await feed.read(on_window, _READ_S):
            quiet = 0
            await asyncio.sleep(_BREATH_S)
        elif await feed.exhausted():
            return
        else:
            quiet += 1
            if quiet >= _QUIET:
                raise TimeoutError("WINDOWS does not hand over what it holds")


def _unknown(test_id: str) -> QueryError:
    return QueryError(
        message=f"nothing is known of test '{test_id}' any more: events are kept for 92 days", code="test_not_found"
    )
