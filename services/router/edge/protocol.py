"""uvicorn's HTTP protocol with what a public edge needs besides: limits on heads and on patience.

* a head (request line and headers) over 64 KiB or 100 headers: 431;
* another version of HTTP than 1.0 and 1.1, or none: 505;
* a body whose chunks are mostly framing: 400;
* a head that takes over 10 s, a body that pauses for 30 s or takes over 300 s: 408 (slow loris);
* a client that closes its sending side in the middle of a request: 400;
* one that closes it while it waits for a model has hung up: the generation is cancelled;
* one that takes nothing of its answer for 60 s: the connection is cut;
* one that sends on while it takes no answers is not read any further, so what waits for it stays small.

Requests to models become an `Exchange` at once, without ASGI; everything else goes uvicorn's way.
"""

from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services._runtime.tls import lacks_certificate
from services.router.domain.refusals import BadRequest, Forbidden, Refused, RequestTimeout
from services.router.edge import head
from services.router.edge.courtesy import Courteous, last_words
from services.router.edge.exchange import CONTINUE, Exchange
from services.router.edge.gate import Gate
from services.router.edge.sweeper import sweeper_of

HEAD_S = 10.0
BODY_IDLE_S = 30.0
BODY_S = 300.0
STALLED_S = 60.0
LINGER_S = 2.0
REFUSED_BODY_S = 10.0
REFUSED_BODY_BYTES = 64 << 20
"""How much of a refused body is still taken in, so that its sender reads the refusal instead of a reset."""

FRAMING = 17
"""Bytes on the wire for each of content, at most, beyond as many as a head may have: chunks may be of one byte each."""

_HEAD, _BODY, _WAITING, _LINGERING, _DRAINING = range(5)
_FOR_ALL = frozenset({b"/health", b"/ready", b"/metrics"})  # without a certificate, as without a key


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._serving: Exchange | None = None
        self._phase = _HEAD
        self._head_bytes = 0
        self._parsed_bytes = 0
        self._raw_bytes = self._content_bytes = 0
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
        if self._phase >= _LINGERING:
            return
        self._unset_keepalive_if_required()
        self._heard = self.loop.time()
        if self._phase == _WAITING:
            self._begin_head()
        elif self._phase == _BODY:
            self._raw_bytes += len(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(self._refusal or BadRequest("this is not valid HTTP/1.1", code="invalid_http"))
        else:
            if self._phase == _HEAD:
                # How much of the data belongs to a head that follows another request in it is not known.
                self._head_bytes += 1 if self._followed else len(data)
                self._followed = False
                if self._head_bytes > head.MAX_HEAD:
                    self._fail(head.too_large())
                elif self.parser.get_http_version() == "0.9":  # a line without a version is all that there will be
                    self._fail(head.unsupported_version())
            elif self._phase == _BODY and self._raw_bytes > head.MAX_HEAD + FRAMING * self._content_bytes:
                self._fail(head.too_much_framing())

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
                data = head.without_upgrade(method, self.url, self.headers) + data[exc.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """A request begins."""
        if self.transport.is_closing():
            self._refuse(BadRequest("the connection is closing", code="invalid_http"))
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
        try:
            head.check_header(self.headers, name, value)
        except Refused as exc:
            self._refuse(exc)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        version = self.parser.get_http_version()
        if self.parser.should_upgrade() and version in head.VERSIONS:
            return  # it comes again without that
        try:
            head.check_head(version, self.headers)
        except Refused as exc:
            self._refuse(exc)
        if self._nameless and self.url.partition(b"?")[0] not in _FOR_ALL:
            why = "this edge wants a client's certificate: connect with one of the authority in http.tls.client_ca_file"
            self._refuse(Forbidden(why, code="client_certificate_required"))
        self._phase = _BODY
        self._began = self._heard
        self._raw_bytes = self._content_bytes = 0
        route = head.route_of(self.url)
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
        self._content_bytes += len(body)
        if cycle.response_complete and self._content_bytes > REFUSED_BODY_BYTES:
            self.transport.close()
        if not isinstance(cycle, Exchange):
            super().on_body(body)
            return
        cycle.take(body)
        if not cycle.response_complete and cycle.refused is not None and cycle.turn and self._serving is None:
            self._serve(cycle)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.parser.should_upgrade():
            return
        self._phase = _WAITING
        cycle: Any = self.cycle
        if not isinstance(cycle, Exchange) and not cycle.response_complete:
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
            asked = cycle.waiting_for_100_continue
            cycle.transport = Courteous(self.transport, lambda: self._close_after(cycle, asked=asked))
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
        if not exchange.keep_alive:
            self._close_after(exchange, asked=exchange.expects)
        elif exchange.more_body:
            self._began = self.loop.time()
        self.on_response_complete()

    def _close_after(self, cycle: Any, *, asked: bool) -> None:
        """Close after an answer, the last on this connection; ``asked``: its client asks before it sends a body."""
        if self.transport.is_closing() or cycle is not self.cycle or cycle.disconnected or not cycle.more_body:
            self.transport.close()
        elif asked and not self._content_bytes:
            self._linger()  # it asked before it sent, and was told not to
        else:
            self._began = self.loop.time()  # closing on unread bytes would reset the connection
            self._end_writing()

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
        if self._phase in {_WAITING, _DRAINING} and self.cycle is not None and not self.cycle.response_complete:
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
        if self._parsed_bytes > head.MAX_HEAD:
            self._refuse(head.too_large())

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
        if phase == _HEAD and cycle is not None and not cycle.response_complete:
            # What came before it is served: then the connection ends, and nothing more is read meanwhile.
            self._phase = _DRAINING
            cycle.keep_alive = False
            return
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
        self.transport.write(last_words(refused, self.headers or ()))
        self._linger()

    def _linger(self) -> None:
        """Send no more, and close when the client has had the time to read what there is."""
        self._phase = _LINGERING
        self._began = self.loop.time()
        if not self._end_writing():
            self.transport.close()

    def _end_writing(self) -> bool:
        """Tell the client that nothing more comes; whether that can be told."""
        if self._half_closed or not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        return True
