"""What the edge tells of a sampled request: the request, its assignment, and each worker that it was sent to."""

from typing import TYPE_CHECKING

from schemas.v1.common import ERRORS
from services._runtime.clock import monotonic
from services._runtime.tracing import OPERATIONS, Traces
from services.router.domain.call import Call, Ended

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class EdgeTraces:
    """Spans of requests. No prompt, no answer, no unit, key or address is in them, nor an id that a caller chose."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def begin(self, call: Call) -> None:
        """The request has been read and assigned; ``call.span`` stays None where it is not sampled."""
        span = call.span = self._traces.begin(f"request {call.route}", call.traceparent, "server", call.started)
        if span is not None:
            assigned = self._traces.child(span, "assign", "internal", call.started)
            share = {"cypria.share_percent": call.share_bp / 100} if call.test else {}
            about = {"cypria.test_id": call.test, "cypria.variant": call.variant, "gen_ai.request.model": call.model}
            self._traces.end(assigned, monotonic(), {**about, **share})

    def dispatch(self, call: Call, worker: str) -> "Span":
        """The request, which is sampled, goes to a worker."""
        span = self._traces.child(call.span, f"dispatch {call.target}", "client", monotonic())
        span.set_attribute("cypria.worker", worker)
        return span

    def dispatched(self, call: Call, span: "Span", ended: Ended | None) -> None:
        """What became of it there; None: it was cut off."""
        if ended is None:
            self._traces.end(span, monotonic(), {}, "cancelled")
            return
        outcome = ended.outcome.value
        self._traces.end(span, monotonic(), {"cypria.outcome": outcome}, outcome if ended.outcome in ERRORS else "")
        if call.span is not None:
            final = ended.final
            tokens = (final.prompt_tokens, final.completion_tokens) if final is not None else (0, 0)
            call.span.set_attributes({
                "cypria.outcome": outcome, "gen_ai.response.model": call.target,
                "gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1],
            })  # fmt: skip

    def end(self, call: Call, status: int) -> None:
        """The request has been answered, or its client has left (499)."""
        if call.span is None:
            return
        self._traces.end(
            call.span, monotonic(),
            {"gen_ai.operation.name": OPERATIONS[call.route], "gen_ai.request.model": call.model,
             "cypria.test_id": call.test, "cypria.variant": call.variant, "http.response.status_code": status,
             "cypria.request_id": call.shown_id},
            str(status) if status >= 500 else "",
        )  # fmt: skip


