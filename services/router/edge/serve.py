"""Serves one request: worker after worker, then the stable model, then an error; never two answers."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from nats.errors import Error as NatsError

from schemas.v1.common import ERRORS, Outcome
from schemas.v1.inference import CHUNK, FINAL, HEAD, SINGLE, Final, FrameError, ReplyHead, SingleHead, unpack
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services._runtime.tracing import header
from services.router.adapters.nats_infer import InferClient, Stream
from services.router.adapters.workers import Worker, WorkerTable
from services.router.domain import errors
from services.router.domain.call import Call, Ended, Reply
from services.router.domain.outcome import broken_off, of_status, of_stream_end
from services.router.edge.arms import Arms
from services.router.edge.meters import Meters
from services.router.edge.tracing import EdgeTraces

log = get_logger(__name__)

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
TIMEOUT_GRACE_S = 0.5
"""A worker keeps the same limits; its own word on what happened is the better one, so it may come first."""
LEAST_S = 0.05
"""What must be left of the time to the first byte for another worker to be worth a try."""
HOLD_S = 5.0
"""How long a request waits for a worker to return."""
SILENT_STREAM_S = 5.0
"""How long a started stream outlives its worker's heartbeats: a busy worker is not a dead one."""
MAX_FAILURE = 1 << 20
"""Bytes kept of an error that comes in pieces."""
MAX_LOST = 3
"""Workers that one request may lose; it might be what kills them."""
MAX_SENDS = 20
"""Workers that one request may be sent to, those included that were not there to take it."""


class Sink(Protocol):
    """Where an answer goes. `abort` ends it so that the client can tell that it is not whole."""

    async def reply(self, call: Call, reply: Reply) -> None:
        """A whole answer."""

    async def start(self, call: Call, head: ReplyHead) -> None:
        """Status and headers of an answer in pieces."""

    async def write(self, piece: bytes) -> None:
        """The next bytes; returns when the client can take more."""

    async def finish(self, piece: bytes) -> None:
        """The last bytes."""

    async def abort(self) -> None:
        """No more will come, and it was not all."""


class Server:
    """Everything between an admitted request and its answer."""

    def __init__(
        self, *, table: WorkerTable, client: InferClient, arms: Arms, meters: Meters, fallback: bool,
        want: Callable[[str], str | None], traces: EdgeTraces | None = None,
    ) -> None:  # fmt: skip
        self._want = want
        self._traces = traces
        self._table = table
        self._client = client
        self._arms = arms
        self._meters = meters
        self._fallback = fallback

    def known(self, model: str) -> bool:
        """Whether anybody serves or has served the model."""
        return self._table.known(model)

    async def serve(self, call: Call, sink: Sink) -> None:
        """Assign, serve, answer and account for one request; never raises but when cancelled."""
        self._meters.in_flight += 1
        status = 500
        if self._traces is not None:
            self._traces.begin(call)
        try:
            status = await self._serve(call, sink)
        except asyncio.CancelledError:
            self._finish(call, Ended(Outcome.CLIENT_CANCEL, status=503))
            raise
        except Exception:
            log.exception("request_failed", request_id=call.id, route=call.route)
            self._finish(call, Ended(broken_off(content=call.first_byte), status=500))
            await (sink.abort() if call.first_byte else sink.reply(call, errors.broken()))
        finally:
            self._meters.in_flight -= 1
            self._meters.done(call.route, call.variant, status, monotonic() - call.started, call.shown_id)
            if self._traces is not None:
                self._traces.end(call, status)

    async def _serve(self, call: Call, sink: Sink) -> int:
        if call.test:
            # One limit for both arms, the stable model's: two limits would make "overdue" mean two things.
            call.limit_s = self._table.timeout_s(call.model) or 0.0
        policy_fallback = call.variant == "b" and self._fallback
        ended = await self._by_model(call, call.target, sink)
        fall_back = policy_fallback and not call.gone and ended.reply is not None and ended.outcome in ERRORS
        self._finish(call, ended, fallback=fall_back)
        if fall_back:
            self._meters.fallbacks += 1
            call.target = call.model
            call.hold_until = 0.0
            ended = await self._by_model(call, call.model, sink)
        if call.gone:
            await (sink.abort() if call.first_byte else sink.reply(call, errors.hung_up()))
        elif ended.reply is not None:
            await sink.reply(call, ended.reply)
        return ended.status

    def _finish(self, call: Call, ended: Ended, *, fallback: bool = False) -> None:
        if call.test:
            self._arms.finish(
                call, ended.outcome, ended=monotonic(), final=ended.final, digest=ended.digest, fallback=fallback
            )

    async def _by_model(self, call: Call, model: str, sink: Sink) -> Ended:
        """Try the model's workers until one answers, refuses for good, or none is left in time."""
        tried: set[str] = set()
        last: Ended | None = None
        lost = 0
        began = 0.0
        for _ in range(MAX_SENDS):
            worker = self._table.choose(model, tried) if self._client.connected else None
            if worker is None:
                if last is not None and last.reset:
                    return last  # all that live have refused: waiting would not change that
                worker = await self._hold(call, model)
            if call.gone:
                return Ended(Outcome.CLIENT_CANCEL, status=499)
            if worker is None:
                return last or self._nobody(model)
            now = monotonic()
            began = began or now
            first_s = worker.beat.timeout_ms / 1000 - (now - began)
            if last is not None and first_s < LEAST_S:
                return last  # it has waited in queues for as long as a first byte may take
            ended = await (self._by_worker if call.span is None else self._traced)(call, worker, sink, first_s)
            if not ended.retry:
                return ended
            tried.add(worker.id)
            last = ended
            if ended.lost:
                began = 0.0  # what a worker lost was not the caller's time to wait
                lost += 1
            if lost >= MAX_LOST:
                break
        return last or self._nobody(model)

    def _nobody(self, model: str) -> Ended:
        if not self._client.connected:
            reply = errors.bus_away()
        elif (why := self._want(model)) is not None:
            reply = errors.unloaded(model, why)
        else:
            reply = errors.no_worker(model, self._table.info(model).state)
        return Ended(Outcome.REJECTED, status=reply.status, reply=reply)

    async def _hold(self, call: Call, model: str) -> Worker | None:
        """Wait for a worker that is ready, until the request has waited HOLD_S in all, if one is to be expected."""
        if self._want(model) is not None:
            return None
        changed = asyncio.Event()
        call.wake = changed.set
        self._table.wait(model, changed.set)
        try:
            async with asyncio.timeout(_hold_left(call)):
                while not call.gone:
                    worker = self._table.choose(model) if self._client.connected else None
                    if worker is not None:
                        return worker
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._table.leave(model, changed.set)
            call.wake = None
        return None

    async def _traced(self, call: Call, worker: Worker, sink: Sink, first_s: float) -> Ended:
        assert self._traces is not None
        span = self._traces.dispatch(call, worker.id)
        ended: Ended | None = None
        try:
            ended = await self._by_worker(call, worker, sink, first_s, header(span))
        finally:
            self._traces.dispatched(call, span, ended)
        return ended

    async def _by_worker(self, call: Call, worker: Worker, sink: Sink, first_s: float, trace: str = "") -> Ended:
        try:
            stream = await self._client.open(
                worker, route=call.route, stream=call.stream, caller=call.caller, body=call.body,
                timeout_s=first_s, total_s=worker.beat.total_timeout_ms / 1000, trace=trace,
                request_id=call.shown_id,
            )  # fmt: skip
        except NatsError:
            reply = errors.bus_away()
            return Ended(Outcome.REJECTED, status=reply.status, reply=reply, retry=True)
        call.wake = stream.wake
        try:
            return await _Relay(self._table, self._client, call, stream, sink, first_s).run()
        finally:
            call.wake = None
            self._table.leave(worker.model, stream.wake)
            self._client.close(stream)


def _hold_left(call: Call) -> float:
    """Seconds that a request may still wait for a worker; they begin to count when they are first asked for."""
    now = monotonic()
    if not call.hold_until:
        call.hold_until = now + HOLD_S
    return max(0.0, call.hold_until - now)


class _Relay:
    """One attempt on one worker: its frames out to the client, and how that ended."""

    __slots__ = ("call", "client", "failure", "first_s", "head", "limbo", "sink", "stream", "table", "timeout_s")

    def __init__(
        self, table: WorkerTable, client: InferClient, call: Call, stream: Stream, sink: Sink, first_s: float
    ) -> None:
        self.table = table
        self.client = client
        self.call = call
        self.stream = stream
        self.sink = sink
        self.first_s = first_s
        self.timeout_s = stream.worker.beat.timeout_ms / 1000
        self.head: ReplyHead | None = None
        self.failure: bytearray | None = None
        self.limbo = False

    async def run(self) -> Ended:
        stream, call = self.stream, self.call
        frames = stream.frames
        while True:
            if not frames:
                await stream.wait(self._patience())
                if call.gone:
                    return self._ended(Outcome.CLIENT_CANCEL, 499)
            if frames:
                self.limbo = stream.lost = stream.timed_out = False
                ended = await self._next_frame()
            elif stream.broken or stream.unreached or stream.lost or self.limbo:
                ended = await self._silence()
            elif stream.timed_out:
                ended = await self._too_late()
            else:
                continue
            if ended is not None:
                return ended
            if call.gone:
                return self._ended(Outcome.CLIENT_CANCEL, 499)

    async def _next_frame(self) -> Ended | None:
        try:
            return await self._frame(self.stream.frames.popleft())
        except FrameError as exc:
            log.warning("frame_malformed", worker=self.stream.worker.id, error=str(exc))
            return await self._break_off("the worker sent what nobody understands", Outcome.ERROR_MID_STREAM)

    def _patience(self) -> float:
        if not self.limbo:
            return (self.timeout_s if self.call.first_byte else self.first_s) + TIMEOUT_GRACE_S
        return min(SILENT_STREAM_S, self.timeout_s) if self.call.first_byte else _hold_left(self.call)

    async def _silence(self) -> Ended | None:
        """The worker fell silent or the connection broke; None: go on waiting, it may be back."""
        stream, worker = self.stream, self.stream.worker
        if stream.broken or stream.unreached:
            return await self._lost()
        stream.lost = False
        if self.table.alive(worker):
            self.limbo = stream.timed_out = False
            self.table.leave(worker.model, stream.wake)
            return None
        if self.limbo and stream.timed_out:
            return await self._lost()
        if not self.call.first_byte and self.table.choose(worker.model, {worker.id}) is not None:
            return await self._lost()
        if not self.limbo:
            self.limbo = True
            self.table.wait(worker.model, stream.wake)
        return None

    async def _lost(self) -> Ended:
        if self.call.first_byte:
            return await self._break_off("the worker that generated this was lost", Outcome.ERROR_MID_STREAM)
        reply = errors.lost_worker(self.stream.worker.model)
        ended = self._ended(Outcome.ERROR_BEFORE_FIRST_TOKEN, reply.status, reply=reply, retry=True)
        ended.lost = not self.stream.unreached
        return ended

    async def _too_late(self) -> Ended:
        if self.call.first_byte:
            return await self._break_off(f"no more came within {self.timeout_s:g} s", Outcome.TIMEOUT)
        reply = errors.too_slow(self.stream.worker.model, self.timeout_s)
        return self._ended(Outcome.TIMEOUT, reply.status, reply=reply)

    async def _break_off(self, message: str, outcome: Outcome) -> Ended:
        if not self.call.first_byte:
            reply = errors.broken()
            return self._ended(broken_off(content=False), reply.status, reply=reply)
        if self._is_events():
            await self.sink.finish(errors.event(message, outcome.value, lines=self._is(NDJSON)))
        else:
            await self.sink.abort()
        return self._ended(outcome, 200)

    def _is(self, content_type: str) -> bool:
        return self.head is not None and self.head.content_type.startswith(content_type)

    def _is_events(self) -> bool:
        """Whether the answer is in a form that can carry an error at its end."""
        return self._is(SSE) or self._is(NDJSON)

    async def _frame(self, payload: bytes) -> Ended | None:
        kind = payload[:1]
        if kind == CHUNK:
            await self._chunk(payload)
            return None
        if kind == SINGLE:
            single, body = unpack(payload, SingleHead)
            return self._single(single.head, single.final, body)
        if kind == HEAD:
            self.head, body = unpack(payload, ReplyHead)
            if not 200 <= self.head.status < 300:
                self.failure = bytearray()  # held back to its end: another arm may answer instead
            await self._write(body, 1)
            return None
        if kind == FINAL:
            final, body = unpack(payload, Final)
            return await self._final(final, body)
        raise FrameError(f"frame of unknown kind {kind!r}")

    def _single(self, head: ReplyHead, final: Final, body: bytes) -> Ended:
        self.stream.ended = True
        outcome = of_status(head.status, final.outcome)
        reply = Reply(head.status, body, head.content_type, head.retry_after)
        return self._ended(outcome, head.status, reply=reply, final=final, retry=final.reset, reset=final.reset)

    async def _chunk(self, payload: bytes) -> None:
        frames, pieces, taken = self.stream.frames, [payload[1:]], 1
        while frames and frames[0][:1] == CHUNK:  # what has come meanwhile goes out in one write
            pieces.append(frames.popleft()[1:])
            taken += 1
        await self._write(pieces[0] if taken == 1 else b"".join(pieces), taken)

    async def _write(self, body: bytes, pieces: int) -> None:
        if self.failure is not None:
            if len(self.failure) < MAX_FAILURE:
                self.failure += body
        elif body:
            if not self.call.first_byte:
                await self._start()
            await self.sink.write(body)
        self.client.taken(self.stream, pieces)

    async def _start(self) -> None:
        head = self.head
        if head is None:
            raise FrameError("a body before its head")
        self.call.first_byte = True
        await self.sink.start(self.call, head)

    async def _final(self, final: Final, body: bytes) -> Ended:
        self.stream.ended = True
        head = self.head or ReplyHead()
        if not self.call.first_byte:
            # Nothing has left yet: as good as an answer in one piece, and may still be tried elsewhere.
            return self._single(head, final, body if self.failure is None else bytes(self.failure) + body)
        outcome = of_stream_end(final.outcome, content=True)
        if outcome in ERRORS and not self._is_events():
            await self.sink.abort()
        else:
            await self.sink.finish(body)
        return self._ended(outcome, head.status, final=final)

    def _ended(
        self, outcome: Outcome, status: int, *, reply: Reply | None = None, final: Final | None = None,
        retry: bool = False, reset: bool = False,
    ) -> Ended:  # fmt: skip
        digest = self.stream.worker.beat.digest
        return Ended(outcome, status=status, reply=reply, final=final, digest=digest, retry=retry, reset=reset)
