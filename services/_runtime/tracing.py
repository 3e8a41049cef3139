"""Traces of requests, sent over OTLP/HTTP; off unless `telemetry.traces.endpoint` is set, and then
OpenTelemetry's SDK is not even imported.

Only what is sampled costs anything: whoever begins a trace decides by `begin`, and carries the context on where it gets
a span. Times are monotonic seconds.
"""

import asyncio
import contextlib
import random
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from services._runtime.clock import monotonic
from services._runtime.settings_telemetry import Traces as TracesSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind

Value = str | int | float | bool
Kind = Literal["server", "client", "internal"]

OPERATIONS = {
    "chat": "chat", "completions": "text_completion", "generate": "text_completion", "embeddings": "embeddings",
}  # fmt: skip
"""GenAI's name of what a route does."""
STOP_S = 1.0
"""How long the last spans may take to leave."""
_READINGS, _TOGETHER_S = 5, 0.0001
"""How often the two clocks are read until it was at one moment, in seconds."""
_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


class Traces:
    """Spans of one service; a thread of its own sends them, and drops what the collector does not take."""

    def __init__(self, service: str, settings: TracesSettings) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        self._api = trace
        self._ratio = settings.sample_ratio
        resource = Resource({"service.name": f"cypria-{service}", "service.namespace": "cypria"})
        # sampling is decided here, before anything of a span is made
        self._provider = TracerProvider(
            resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False, span_limits=SpanLimits(max_events=8)
        )
        exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("cypria")

    def begin(self, name: str, traceparent: str, kind: Kind, began: float) -> "Span | None":
        """A span under the caller's, whose decision counts, or the first of a trace; None where it is not sampled."""
        found = _HEADER.fullmatch(traceparent)
        if found is None:
            if random.random() >= self._ratio:  # noqa: S311 - nobody gains by guessing it
                return None
            return self.child(self._api.INVALID_SPAN, name, kind, began)
        if not int(found[3], 16) & 1:
            return None
        parent = self._api.SpanContext(
            int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=self._api.TraceFlags(1)
        )
        return self.child(self._api.NonRecordingSpan(parent), name, kind, began)

    def child(self, parent: "Span", name: str, kind: Kind, began: float) -> "Span":
        """A span under another."""
        context = self._api.set_span_in_context(parent)
        return self._tracer.start_span(name, context=context, kind=self._kind(kind), start_time=at(began))

    def end(self, span: "Span", ended: float, attributes: Mapping[str, Value], error: str = "") -> None:
        """The span is over; ``error`` says as what it failed, if it did. Attributes that are "" are left out."""
        span.set_attributes({name: value for name, value in attributes.items() if value != ""})
        if error:
            span.set_attribute("error.type", error)
            span.set_status(self._api.StatusCode.ERROR)
        span.end(at(ended))

    def _kind(self, kind: Kind) -> "SpanKind":
        return self._api.SpanKind[kind.upper()]

    async def stop(self) -> None:
        """Send what waits, for STOP_S at most: a collector that is away holds up no stop."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="traces-stop", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await done.wait()


def build(service: str, settings: TracesSettings) -> Traces | None:
    """None where traces are off."""
    return Traces(service, settings) if settings.endpoint is not None else None


def at(moment: float) -> int:
    """Nanoseconds since 1970 of a monotonic moment."""
    for _ in range(_READINGS):
        before, wall_ns, after = monotonic(), time.time_ns(), monotonic()
        if after - before < _TOGETHER_S:  # else this process was kept from running between them
            break
    return wall_ns - round((before - moment) * 1e9)


def header(span: "Span") -> str:
    """The span's context as W3C's traceparent."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
