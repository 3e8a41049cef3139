"""What a worker tells of a request that the edge has sampled: its wait for a slot, the engine, the first token."""

from typing import TYPE_CHECKING

from schemas.v1.common import ERRORS
from schemas.v1.inference import Final
from services._runtime.clock import monotonic
from services._runtime.tracing import OPERATIONS, Traces, Value, at, header
from services.inference.adapters.job import Job

if TYPE_CHECKING:
    from opentelemetry.trace import Span


def begin(traces: Traces, job: Job) -> str:
    """The engine's turn: under which span, as W3C's traceparent, it may tell its own part; "" where it need not."""
    span = _begin(traces, job)
    if span is None:
        return ""
    engine = traces.child(span, "engine", "internal", job.engine_at)
    job.spans = span, engine
    return header(engine)


def tell(traces: Traces, job: Job, final: Final) -> None:
    """The request is over. No prompt and no answer is in the spans, nor for whom it was."""
    model, now = job.model, monotonic()
    span, engine = job.spans or (_begin(traces, job), None)
    if span is None:
        return
    queue = traces.child(span, "queue", "internal", job.started)
    traces.end(queue, job.engine_at or now, {})
    failed = final.outcome if final.outcome in {one.value for one in ERRORS} else ""
    if engine is not None:
        if final.ttft_us >= 0:
            engine.add_event("first_token", timestamp=at(job.started + final.ttft_us / 1e6))
        traces.end(engine, now, {"cypria.engine": model.config.engine}, failed)
    about: dict[str, Value] = {
        "gen_ai.operation.name": _operation(job),
        "gen_ai.request.model": model.name, "gen_ai.response.model": model.name,
        "gen_ai.usage.input_tokens": final.prompt_tokens, "gen_ai.usage.output_tokens": final.completion_tokens,
        "cypria.usage.cached_tokens": final.cached_tokens, "cypria.outcome": final.outcome,
        "cypria.model_digest": final.digest,
    }  # fmt: skip
    traces.end(span, now, about, failed)


def _begin(traces: Traces, job: Job) -> "Span | None":
    return traces.begin(f"{_operation(job)} {job.model.name}", job.frame.trace, "server", job.started)


def _operation(job: Job) -> str:
    return OPERATIONS.get(job.frame.route, job.frame.route)
