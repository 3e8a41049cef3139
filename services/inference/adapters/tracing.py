"""What a worker tells of a request that the edge has sampled: its wait for a slot, the engine, the first token."""

from schemas.v1.common import ERRORS
from schemas.v1.inference import Final
from services._runtime.clock import monotonic
from services._runtime.tracing import OPERATIONS, Traces, Value, at
from services.inference.adapters.job import Job


def tell(traces: Traces, job: Job, final: Final) -> None:
    """The request is over. No prompt and no answer is in the spans, nor for whom it was."""
    model, now = job.model, monotonic()
    operation = OPERATIONS.get(job.frame.route, job.frame.route)
    span = traces.begin(f"{operation} {model.name}", job.frame.trace, "server", job.started)
    if span is None:
        return
    queue = traces.child(span, "queue", "internal", job.started)
    traces.end(queue, job.engine_at or now, {})
    failed = final.outcome if final.outcome in {one.value for one in ERRORS} else ""
    if job.engine_at:
        engine = traces.child(span, "engine", "internal", job.engine_at)
        if final.ttft_us >= 0:
            engine.add_event("first_token", timestamp=at(job.started + final.ttft_us / 1e6))
        traces.end(engine, now, {"cypria.engine": model.config.engine}, failed)
    about: dict[str, Value] = {
        "gen_ai.operation.name": operation, "gen_ai.request.model": model.name, "gen_ai.response.model": model.name,
        "gen_ai.usage.input_tokens": final.prompt_tokens, "gen_ai.usage.output_tokens": final.completion_tokens,
        "cypria.usage.cached_tokens": final.cached_tokens, "cypria.outcome": final.outcome,
        "cypria.model_digest": final.digest,
    }  # fmt: skip
    traces.end(span, now, about, failed)
