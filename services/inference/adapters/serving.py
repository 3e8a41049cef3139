"""One request from its frame to its last reply frame. The path that every token takes: keep it lean."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from schemas.v1.common import Outcome
from schemas.v1.inference import CHUNK, FINAL, HEAD, MAX_PIECE, SINGLE, Final, ReplyHead, SingleHead, pack
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services._runtime.tracing import Traces
from services.inference.adapters.counts import Counts
from services.inference.adapters.engine import EngineError, EngineHead, EngineRequest
from services.inference.adapters.job import LOST, STOPPED, Job
from services.inference.adapters.tracing import begin, tell
from services.inference.domain import outcome as outcomes
from services.inference.domain import requests
from services.inference.domain.cost import cost_nano
from services.inference.domain.formats import error as error_body
from services.inference.domain.formats import shaped
from services.inference.domain.legacy import LegacyReply, to_completions
from services.inference.domain.lifecycle import State
from services.inference.domain.replies import Inspector
from services.inference.domain.requests import BadRequestError
from services.inference.domain.sse import SseError, SseSplitter

log = get_logger(__name__)

Publish = Callable[[str, bytes], Awaitable[Any]]

END_S = 0.5
"""How long an engine may take to end a stream whose last event has come."""


class Server:
    """Serves jobs and writes their frames with ``publish(subject, payload)``."""

    def __init__(self, publish: Publish, traces: Traces | None = None) -> None:
        self._publish = publish
        self._traces = traces
        self.counts = Counts()

    async def run(self, job: Job) -> None:
        """Serve one job to its end; raises nothing but what a second cancellation brings."""
        model = job.model
        try:
            outcome, error = await self._answer(job)
        except asyncio.CancelledError:
            if job.end is None:
                raise
            outcome, error = self._cut_short(job)
        except BadRequestError as exc:
            outcome, error = self._refuse(
                job, EngineError(400, exc.message, kind="invalid_request_error", code=exc.code, param=exc.param)
            )
        except EngineError as exc:
            outcome, error = self._refuse(job, exc)
        except SseError as exc:
            outcome, error = self._refuse(job, EngineError(502, f"the engine's stream is not usable: {exc}"))
        except Exception as exc:
            log.exception("request_failed", model=model.name, error=type(exc).__name__)
            outcome, error = self._refuse(job, EngineError(500, f"the engine failed ({type(exc).__name__})"))
        finally:
            self._free(job)
        final = _final(job, outcome, error)
        self._tell(job, final)
        if job.end == LOST:
            return
        try:
            await self._finish(job, final, error)
        except asyncio.CancelledError:
            if job.end is None:
                raise

    def _tell(self, job: Job, final: Final) -> None:
        self.counts.add(job.model.name, final, job.frame.request_id)
        if self._traces is not None and job.frame.trace:
            tell(self._traces, job, final)

    async def _answer(self, job: Job) -> tuple[Outcome, EngineError | None]:
        model, frame = job.model, job.frame
        engine = model.engine
        if model.state is not State.READY or engine is None:
            raise EngineError(
                503, f"model '{model.name}' is {model.state} here", kind="overloaded", retry_after=1, reset=True
            )
        body, route = job.body, frame.route
        if route == "generate":
            body, prompt = to_completions(body)
            route, job.legacy = "completions", LegacyReply(prompt)
        wants = requests.read(body)
        job.inspector = Inspector(wants)
        if not await self._slot(job):
            raise EngineError(
                503, f"model '{model.name}' has no slot free and its queue is full", kind="overloaded",
                code="overloaded", retry_after=model.admission.retry_after(), reset=True,
            )  # fmt: skip
        job.last = job.engine_at = monotonic()
        job.body = b""
        trace = begin(self._traces, job) if self._traces is not None and frame.trace else ""
        pieces = engine.generate(EngineRequest(route, body, wants, frame.stream, job.report, trace))
        try:
            head = await anext(pieces)
            assert isinstance(head, EngineHead)
            job.head = ReplyHead(head.status, head.content_type, head.retry_after)
            streamed = frame.stream and head.status < 300 and head.content_type.startswith("text/event-stream")
            return await (self._stream(job, pieces) if streamed else self._whole(job, pieces))
        finally:
            await pieces.aclose()

    async def _slot(self, job: Job) -> bool:
        """Wait for a slot; False when there is not even a place to wait."""
        admission, caller = job.model.admission, job.frame.caller
        arrival = admission.arrive(job, caller)
        job.model.idle.clear()
        if arrival.evicted is not None:
            loser = arrival.evicted
            assert loser.slot is not None
            if not loser.slot.done():
                loser.slot.set_exception(
                    EngineError(
                        429, "too many requests of this caller wait: send fewer at a time", kind="rate_limit_error",
                        code="queue_full", retry_after=admission.retry_after(), reset=True,
                    )
                )  # fmt: skip
        if arrival.admitted:
            job.running = True
            return True
        if not arrival.queued:
            return False
        loop = asyncio.get_running_loop()
        job.slot = loop.create_future()
        timer = loop.call_later(max(0.0, job.queue_limit_s - (monotonic() - job.started)), _waited_enough, job)
        try:
            await job.slot
        except asyncio.CancelledError:
            # Cancelled in the moment after the slot was handed over: it is ours to give back.
            slot = job.slot
            job.running = not admission.withdraw(job, caller) and not slot.cancelled() and slot.exception() is None
            raise
        finally:
            timer.cancel()
        job.running = True
        return True

    @staticmethod
    def _free(job: Job) -> None:
        admission = job.model.admission
        if job.running:
            job.running = False
            following = admission.leave(monotonic() - job.engine_at if job.engine_at else None)
            while following is not None:
                assert following.slot is not None
                if not following.slot.done():
                    following.slot.set_result(None)
                    break
                following = admission.leave(None)
        if not admission.running and not admission.queued:
            job.model.idle.set()

    async def _stream(self, job: Job, pieces: Any) -> tuple[Outcome, EngineError | None]:
        splitter = SseSplitter()
        inspector, flow, legacy = job.inspector, job.flow, job.legacy
        if legacy is not None and job.head is not None:
            job.head.content_type = "application/x-ndjson"
        async for piece in pieces:
            now = job.last = monotonic()
            for event in splitter.feed(piece):
                if inspector.event(event, now):
                    flow.put(legacy.event(event) if legacy is not None else event)
            job.content = inspector.has_content
            # Until there is content nothing goes out, so that a failure before it can still be served elsewhere.
            if flow.buffered and (job.content or (inspector.finished and inspector.error is None)):
                await self.flush(job)
                if flow.full:
                    await self._credit(job)
                    job.last = monotonic()
            if inspector.done:
                await _let_end(pieces)
                break
        if inspector.error is not None and not job.content:
            raise EngineError(
                inspector.error_status(), inspector.error_message(),
                kind=inspector.error_field("type") or "engine_error", code=inspector.error_field("code"),
                param=inspector.error_field("param"),
            )  # fmt: skip
        flow.put(splitter.rest)
        if inspector.finished or inspector.error is not None:
            return inspector.outcome(), None
        raise EngineError(502, "the engine's stream broke off before its end", kind="engine_error")

    async def _whole(self, job: Job, pieces: Any) -> tuple[Outcome, EngineError | None]:
        body = b"".join([piece async for piece in pieces])
        head = job.head
        assert head is not None
        if head.status >= 300:
            return self._failed(head, job, body), None
        seen = job.inspector
        if not seen.whole(body, monotonic()) and job.frame.route != "embeddings":
            raise EngineError(502, "the engine's answer is not JSON: check models[].base_url", kind="engine_error")
        job.content = seen.has_content
        if seen.error is not None and not job.content:
            head.status = seen.error_status()  # some gateways put an error into a 200
            return self._failed(head, job, body), None
        job.flow.put(job.legacy.whole(body) if job.legacy is not None else body)
        return seen.outcome(), None

    @staticmethod
    def _failed(head: ReplyHead, job: Job, body: bytes) -> Outcome:
        other = shaped(body, head.status)
        if other is not None:
            head.content_type = "application/json"
        job.flow.put(body if other is None else other)
        return outcomes.of_status(head.status)

    async def flush(self, job: Job) -> None:
        """Send as many pieces as there is credit for. Also called when credit comes.

        Taking a piece and handing it to the connection happen without a pause between, so two callers at once
        keep the order.
        """
        head, flow = job.head, job.flow
        if head is None:
            return
        while (piece := flow.take()) is not None:
            if job.head_sent:
                payload = CHUNK + piece
            else:
                job.head_sent = True
                payload = pack(HEAD, head, piece)
            await self._publish(job.reply, payload)

    async def _credit(self, job: Job) -> None:
        """Wait until the router takes more."""
        job.wake = job.wake or asyncio.Event()
        job.waiting = True
        while job.flow.full:
            job.wake.clear()
            await job.wake.wait()
            await self.flush(job)
        job.waiting = False

    async def grant(self, job: Job, credit: int) -> None:
        """Credit from the router."""
        job.flow.grant(credit)
        if job.waiting and job.wake is not None:
            job.wake.set()
        elif job.flow.buffered and job.frame.stream:
            await self.flush(job)

    def _cut_short(self, job: Job) -> tuple[Outcome, EngineError | None]:
        job.flow.drop()
        if job.end == Outcome.TIMEOUT:
            if not job.engine_at:
                return Outcome.REJECTED, _no_slot(job)
            return Outcome.TIMEOUT, EngineError(504, "the engine did not answer in time", kind="timeout")
        if job.end == STOPPED:
            reset = not job.engine_at
            outcome = Outcome.REJECTED if reset else outcomes.broken_off(content=job.content)
            return outcome, EngineError(503, "this worker stops", kind="overloaded", retry_after=1, reset=reset)
        return Outcome.CLIENT_CANCEL, EngineError(499, "the client has gone", kind="client_cancel")

    @staticmethod
    def _refuse(job: Job, exc: EngineError) -> tuple[Outcome, EngineError]:
        if not job.content:
            return outcomes.of_status(exc.status), exc
        return (Outcome.TIMEOUT if exc.status == 504 else Outcome.ERROR_MID_STREAM), exc

    async def _finish(self, job: Job, final: Final, error: EngineError | None) -> None:
        """The last frames."""
        flow = job.flow
        if error is not None:
            _put_error(job, error)
        head = job.head or ReplyHead()
        if not job.head_sent and flow.buffered <= MAX_PIECE:
            await self._publish(job.reply, pack(SINGLE, SingleHead(head, final), flow.last() or b""))
            return
        while (rest := flow.last()) is None:
            await self.flush(job)
            if flow.full:
                await self._credit(job)
        await self._publish(job.reply, pack(FINAL, final, rest))


def _waited_enough(job: Job) -> None:
    """The time for a place is over: it is told at once, so that another worker may be tried while it matters."""
    assert job.slot is not None
    if not job.slot.done():
        job.model.admission.withdraw(job, job.frame.caller)
        job.slot.set_exception(_no_slot(job))


def _no_slot(job: Job) -> EngineError:
    return EngineError(
        503, f"no slot of model '{job.model.name}' became free within {job.queue_limit_s:g} s", kind="overloaded",
        code="overloaded", retry_after=job.model.admission.retry_after(), reset=True,
    )  # fmt: skip


async def _let_end(pieces: Any) -> None:
    """Give the engine a moment to end its stream after its last event, so that the connection can be kept.

    How it ends is of no interest any more: the answer is whole.
    """
    try:
        async with asyncio.timeout(END_S):
            async for _ in pieces:
                pass
    except (TimeoutError, EngineError):
        pass


def _put_error(job: Job, error: EngineError) -> None:
    """The error as the whole answer; or, when some of a stream has come, as an event at its end."""
    body = error_body(error.message, error.kind, error.code, error.param)
    if not job.head_sent and not job.content:
        job.flow.drop()
        job.head = ReplyHead(error.status, retry_after=error.retry_after)
        job.flow.put(body)
    elif job.frame.stream and job.end != Outcome.CLIENT_CANCEL:
        job.flow.put(body + b"\n" if job.legacy is not None else b"data: " + body + b"\n\n")


def _final(job: Job, outcome: Outcome, error: EngineError | None) -> Final:
    seen, report, model = job.inspector, job.report, job.model
    first = -1
    if report.first_token_s >= 0:
        first = round((job.engine_at - job.started + report.first_token_s) * 1e6)
    elif seen.first_at is not None and job.frame.stream:
        first = round((seen.first_at - job.started) * 1e6)
    tokens = seen.tokens_out()
    prompt_tokens, cached_tokens = seen.prompt_tokens, seen.cached_tokens
    if not seen.usage_seen:
        tokens = report.completion_tokens if report.completion_tokens >= 0 else tokens
        prompt_tokens = max(report.prompt_tokens, prompt_tokens)
        cached_tokens = max(report.cached_tokens, cached_tokens)
    gap_s = seen.token_gap_s(tokens)
    between = -1 if gap_s is None else round(gap_s * 1e6)
    queued = -1
    if job.engine_at:
        queued = round((job.engine_at - job.started + max(report.queue_s, 0.0)) * 1e6)
    return Final(
        outcome=outcome.value,
        digest=model.digest,
        ttft_us=first,
        itl_us=between,
        queue_us=queued,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        cached_tokens=cached_tokens,
        cost_nano=cost_nano(model.prices, prompt_tokens, tokens, report.gpu_us),
        gpu_us=report.gpu_us,
        error=error.kind if error is not None else "",
        reset=error.reset if error is not None else False,
    )
