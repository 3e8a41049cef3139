"""uvicorn's HTTP protocol with what a public edge needs besides: limits on heads and on patience.

* a head (request line and headers) over 64 KiB or 100 headers: 431;
* a head that takes over 10 s, a body that pauses for 30 s or takes over 300 s: 408 (slow loris);
* a client that closes its sending side in the middle of a request: 400;
* one that closes it while it waits for a model has hung up: the generation is cancelled;
* one that takes nothing of its answer for 60 s: the connection is cut;
* one that sends on while it takes no answers is not read any further, so what waits for it stays small.

Requests to models become an `Exchange` at once, without ASGI; everything else goes uvicorn's way.
"""

from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from services._runtime.health import SHIELD
from services._runtime.tls import lacks_certificate
from services.router.domain.errors import refusal
from services.router.domain.refusals import BadRequest, Forbidden, HeadTooLarge, Refused, RequestTimeout
from services.router.domain.request import PATHS, request_id
from services.router.edge.exchange import CONTINUE, Exchange
from services.router.edge.gate import Gate, new_id
from services.router.edge.sweeper import sweeper_of

MAX_HEAD, MAX_HEADERS = 64 << 10, 100
HEAD_S = 10.0
BODY_IDLE_S = 30.0
BODY_S = 300.0
STALLED_S = 60.0
LINGER_S = 2.0
REFUSED_BODY_S = 10.0
REFUSED_BODY_BYTES = 64 << 20
"""How much of a refused body is still taken in, so that its sender reads the refusal instead of a reset."""

_HEAD, _BODY, _WAITING, _LINGERING = range(4)
_UPGRADE = frozenset({b"connection", b"upgrade", b"http2-settings"})
_SINGLE = frozenset({b"authorization", b"host", b"transfer-encoding"})
_SHIELD = "".join(f"{name.lower()}: {value}\r\n" for name, value in SHIELD.items())
_FOR_ALL = frozenset({b"/health", b"/ready", b"/metrics"})  # without a certificate, as without a key
_ROUTES = {path.encode(): route for path, route in PATHS.items()}


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._serving: Exchange | None = None
        self._phase = _HEAD
        self._head_bytes = 0
        self._parsed_bytes = 0
        self._began = self._heard = self.loop.time()
        self._stalled: float | None = None
        self._refusal: Refused | None = None
        self._half_closed = False
        self._followed = self._held = False
        self._encrypted = self._nameless = False

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._encrypted = transport.get_extra_info("ssl_object") is not None
        self._nameless = lacks_certificate(transport)
        sweeper_of(self.server_state, self.loop).connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        sweeper_of(self.server_state, self.loop).connections.discard(self)
        if self._serving is not None:
            self._serving.disconnected = True
        super().connection_lost(exc)
        self._gone()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._phase == _LINGERING:
            return
        self._unset_keepalive_if_required()
        self._heard = self.loop.time()
        if self._phase == _WAITING:
            self._begin_head()
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(self._refusal or BadRequest("this is not valid HTTP/1.1", code="invalid_http"))
        else:
            if self._phase == _HEAD:
                # How much of the data belongs to a head that follows another request in it is not known.
                self._head_bytes += 1 if self._followed else len(data)
                self._followed = False
                if self._head_bytes > MAX_HEAD:
                    self._fail(_head_too_large())

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as exc:
                # The wish for another protocol is ignored, as RFC 9110 lets a server do: some clients (the JDK's) wish
                # for HTTP/2 with every first request, and the parser would take the body for that protocol's bytes.
                method = self.parser.get_method()
                if method == b"CONNECT":
                    raise
                head = b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] not in _UPGRADE)
                data = b"%s %s HTTP/1.1\r\n%s\r\n" % (method, self.url, head) + data[exc.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._phase != _HEAD:
            self._begin_head()
            self._followed = True
        self._parsed_bytes = 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._count(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(len(name) + len(value) + 4)
        if self._phase != _HEAD:
            return  # after a body: too late to mean anything
        name = name.lower()
        if name in _SINGLE:
            self._single(name, value)
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(HeadTooLarge(f"there are over {MAX_HEADERS} headers: send fewer"))
        self.headers.append((name, value))

    def _single(self, name: bytes, value: bytes) -> None:
        if any(known == name for known, _ in self.headers):
            reason = f"the header {name.decode().title()} came twice: send it once"
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            reason = "the only Transfer-Encoding that is taken is chunked: send the body as it is"
        else:
            return
        self._refuse(BadRequest(reason, code="invalid_http"))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self.parser.should_upgrade():
            return  # it comes again without that
        self._phase = _BODY
        self._began = self._heard
        if self.parser.get_http_version() == "1.1" and not any(name == b"host" for name, _ in self.headers):
            self._refuse(BadRequest("the header Host is missing: HTTP/1.1 wants it", code="invalid_http"))
        if self._nameless and self.url.partition(b"?")[0] not in _FOR_ALL:
            why = "this edge wants a client's certificate: connect with one of the authority in http.tls.client_ca_file"
            self._refuse(Forbidden(why, code="client_certificate_required"))
        route = self._route()
        gate: Gate | None = getattr(self.app, "gate", None)
        if route is not None and gate is not None and self.parser.get_method() == b"POST":
            self._exchange(route, gate)
            return
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def _route(self) -> str | None:
        path = self.url.partition(b"?")[0]
        if not path.startswith(b"/"):
            path = httptools.parse_url(self.url).path or b""
        route = _ROUTES.get(path)
        if route is None and (b"%" in path or b"#" in path):
            route = _ROUTES.get(unquote_to_bytes(path.partition(b"#")[0]))
        return route

    def _exchange(self, route: str, gate: Gate) -> None:
        version = self.parser.get_http_version()
        exchange = Exchange(
            self, gate, route, self.headers, self.client[0] if self.client else "",
            keep_alive=version != "1.0" and self.parser.should_keep_alive(), chunked=version == "1.1",
        )  # fmt: skip
        before = self.cycle
        self.cycle = exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            exchange.turn = True
            if exchange.ready:
                self._serve(exchange)
            elif exchange.expects:
                self.transport.write(CONTINUE)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        cycle: Any = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_body(body)
            return
        cycle.take(body)
        if cycle.response_complete:
            if cycle.taken > REFUSED_BODY_BYTES:
                self.transport.close()
        elif cycle.refused is not None and cycle.turn and self._serving is None:
            self._serve(cycle)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.parser.should_upgrade():
            return
        self._phase = _WAITING
        cycle: Any = self.cycle
        if not isinstance(cycle, Exchange):
            super().on_message_complete()
            return
        cycle.more_body = False
        if cycle.response_complete:
            if not cycle.keep_alive:
                self.transport.close()
        elif cycle.turn and self._serving is None:
            self._serve(cycle)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, Exchange):
            super()._start_asgi_task(cycle, app)
            return
        cycle.turn = True
        if cycle.ready:
            self._serve(cycle)
        elif cycle.expects:
            self.transport.write(CONTINUE)

    def _serve(self, exchange: Exchange) -> None:
        self._serving = exchange
        task = self.loop.create_task(exchange.run())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def answered(self, exchange: Exchange) -> None:
        """An exchange is over: on to the next request, or close."""
        self._serving = None
        if not exchange.keep_alive and not self.transport.is_closing():
            if exchange.more_body and exchange.expects and not exchange.taken and not exchange.disconnected:
                self._linger()  # it asked before it sent, and was told not to
            elif exchange.more_body and not exchange.disconnected:
                self._began = self.loop.time()  # closing on unread bytes would reset the connection
            else:
                self.transport.close()
        elif exchange.more_body:
            self._began = self.loop.time()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """An answer has been written: on to the next request once the client takes what there is."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self.flow.write_paused:
            self._held = True
            self.flow.pause_reading()
        else:
            self._next()

    def _next(self) -> None:
        if not self.pipeline:
            self._read_on()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
            return
        cycle, app = self.pipeline.pop()
        self._start_asgi_task(cycle, app)
        if not self.pipeline:
            self._read_on()  # its body may still be on its way

    def _read_on(self) -> None:
        if self.flow.read_paused:
            self._began = self._heard = self.loop.time()
            self.flow.resume_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; True keeps the connection open for the answer, which TLS does not know."""
        self._half_closed = True
        return self._ended() and not self._encrypted

    def _ended(self) -> bool:
        if self._phase == _HEAD and self._head_bytes:
            self._fail(BadRequest("the connection was closed inside a request's head: send all of it",
                                  code="incomplete_request"))  # fmt: skip
            return True
        if self._phase == _BODY and not self.cycle.response_complete:
            self._fail(BadRequest("the body ended before its announced length: send all of it",
                                  code="incomplete_body"))  # fmt: skip
            return True
        if self._phase == _WAITING and self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._gone()
            return True
        return False

    def pause_writing(self) -> None:
        """The client takes nothing at present."""
        self._stalled = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client takes more again."""
        self._stalled = None
        super().resume_writing()
        if self._held:
            self._held = False
            self._next()

    def sweep(self, now: float) -> None:
        """Has the client's time run out?"""
        if self._stalled is not None and now - self._stalled > STALLED_S:
            self.transport.abort()
        elif self._phase == _LINGERING:
            if now - self._began > LINGER_S:
                self.transport.close()
        elif self._phase == _HEAD:
            if now - self._began > HEAD_S and not self.flow.read_paused:
                if self._head_bytes:
                    self._fail(RequestTimeout(f"the head took over {HEAD_S:g} s: send it at once"))
                else:
                    self.transport.close()
        elif self._phase == _BODY and self.cycle.response_complete:
            if now - self._began > REFUSED_BODY_S:
                self.transport.close()
        elif self._phase == _BODY and not self.flow.read_paused and self._body_late(now):
            self._fail(RequestTimeout(f"the body paused for over {BODY_IDLE_S:g} s: send it at once"))

    def _body_late(self, now: float) -> bool:
        return now - self._heard > BODY_IDLE_S or now - self._began > BODY_S

    def _begin_head(self) -> None:
        self._phase = _HEAD
        self._began = self._heard
        self._head_bytes = 0
        self.headers = []

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > MAX_HEAD:
            self._refuse(_head_too_large())

    def _refuse(self, refused: Refused) -> NoReturn:
        """End the parsing; `data_received` answers."""
        self._refusal = refused
        raise refused

    def _gone(self) -> None:
        exchange, self._serving = self._serving, None
        if exchange is not None and exchange.call is not None:
            exchange.call.leave()

    def _fail(self, refused: Refused) -> None:
        """Answer what cannot be served, then close; linger so that the client can read the answer first."""
        cycle, phase = self.cycle, self._phase
        busy = cycle is not None and not cycle.response_complete
        answering = busy and (phase != _BODY or cycle.response_started or bool(self.pipeline))
        if busy:
            cycle.disconnected = True
            cycle.message_event.set()
            self._gone()
        self._phase = _LINGERING
        self._began = self.loop.time()
        if self.transport.is_closing():
            return
        if answering:
            # Another answer is on its way on this connection: nothing may be put in between.
            self.transport.close()
            return
        reply = refusal(refused)
        own_id = next((value for name, value in self.headers or () if name == b"x-request-id"), None)
        head = (
            f"x-request-id: {request_id(own_id) or new_id()}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(reply.body)}\r\n{_SHIELD}connection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[reply.status] + head.encode() + reply.body)
        self._linger()

    def _linger(self) -> None:
        """Send no more, and close when the client has had the time to read what there is."""
        self._phase = _LINGERING
        self._began = self.loop.time()
        if self.transport.can_write_eof() and not self._half_closed:
            self.transport.write_eof()
        else:
            self.transport.close()


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the request line and headers are over {MAX_HEAD} bytes: send fewer or shorter ones")
