"""A collector of traces on loopback: takes OTLP over HTTP, decodes it and keeps every span."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Seen(NamedTuple):
    """A span, with ids in hex and attributes as a dict."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    events: list[str]
    began_ns: int
    ended_ns: int


class Collector:
    """Listens from `__enter__` on; ``spans`` and ``raw`` grow as they come."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.raw: list[bytes] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.die()

    def die(self) -> None:
        """Listen no more; a second time is nothing."""
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> dict[str, Seen]:
        """The spans of a trace, by service and the first word of their names."""
        return {f"{one.service} {one.name.split()[0]}": one for one in self.spans if one.trace == trace}

    def _take(self, body: bytes) -> None:
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(each.value.string_value for each in resource.resource.attributes if each.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
                    }
                    self.spans.append(Seen(
                        service, span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), attributes,
                        [event.name for event in span.events], span.start_time_unix_nano, span.end_time_unix_nano,
                    ))  # fmt: skip

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                """Nothing."""

        return Handler
