"""Inference over HTTP, in raw ASGI on `EdgeProtocol`: read as little as possible, pass everything else on."""

import asyncio
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from schemas.v1.inference import ReplyHead
from services._runtime.clock import monotonic
from services.router.domain import feedback_token
from services.router.domain.auth import KeyRing, Principal, Role, authorize
from services.router.domain.call import Call, Reply
from services.router.domain.errors import refusal
from services.router.domain.feedback_token import FeedbackToken
from services.router.domain.ratelimit import RateLimiter
from services.router.domain.refusals import (
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Refused,
    TooLarge,
    TooMany,
)
from services.router.domain.request import PATHS, read, request_id
from services.router.edge.arms import Arms
from services.router.edge.meters import Meters
from services.router.edge.serve import Server
from services.router.ports import ModelInfo

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MODELS_PATH = "/v1/models"
DRAIN_S = 10.0
DRAIN_BYTES = 64 << 20
"""How much of a refused body is still taken in, so that its sender reads the refusal instead of a reset."""

_encode = msgspec.json.Encoder().encode
_UNIT_HEADERS = {b"x-session-id": "x_session_id", b"x-user-id": "x_user_id"}


class Gate:
    """Who may come in: keys, roles, addresses, rates; and what a body amounts to. Shared by HTTP and the bus."""

    def __init__(
        self, *, ring: KeyRing, limiter: RateLimiter, arms: Arms, server: Server, meters: Meters, signing_key: bytes,
        max_body: int, default_model: str | None, ip_allow: Sequence[str], unit_sources: Sequence[str],
        models: Callable[[], list[ModelInfo]],
    ) -> None:  # fmt: skip
        self.ring = ring
        self.server = server
        self.meters = meters
        self.max_body = max_body
        self.models = models
        self._arms = arms
        self._limiter = limiter
        self._signing_key = signing_key
        self._default_model = default_model
        self._networks = [ipaddress.ip_network(net, strict=False) for net in ip_allow]
        self._with_key = "api_key" in unit_sources
        self._with_address = "client_address" in unit_sources

    def address(self, host: str) -> None:
        """Raises Forbidden when `security.ip_allow` leaves the address out."""
        if not self._networks:
            return
        known = ipaddress.ip_address(host) if host else None
        if known is None or not any(known in net for net in self._networks):
            raise Forbidden("this address is not allowed: have security.ip_allow name it", code="address_not_allowed")

    def enter(self, authorization: str | None) -> Principal:
        """Raises Unauthenticated, Forbidden or TooMany."""
        principal = authorize(self.ring, authorization, Role.CLIENT)
        wait = self._limiter.take(principal.name, monotonic())
        if wait is not None:
            raise TooMany("over the inference limit of this key: slow down", retry_after_s=wait)
        return principal

    def call(
        self, *, route: str, body: bytes, principal: Principal, units: dict[str, bytes], own_id: bytes | None, host: str
    ) -> Call:
        """The request, assigned to its arm. Raises BadRequest and NotFound."""
        now = monotonic()
        peek = read(body)
        model = peek.model or (self._default_model if route == "generate" else None)
        if not model:
            raise BadRequest("'model' is missing: name one of GET /v1/models", param="model", code="missing_model")
        if not self.server.known(model):
            raise NotFound(
                f"the model '{model}' does not exist: GET /v1/models lists those that do", param="model",
                code="model_not_found",
            )  # fmt: skip
        if peek.user:
            units["user"] = peek.user.encode("utf-8", "surrogatepass")
        if peek.prompt_cache_key:
            units["prompt_cache_key"] = peek.prompt_cache_key.encode("utf-8", "surrogatepass")
        if self._with_key:
            units["api_key"] = principal.name.encode()
        if self._with_address:
            units["client_address"] = host.encode()
        call = Call(
            request_id=request_id(own_id) or new_id(), route=route, body=body, model=model, stream=bool(peek.stream),
            caller=principal.name, units=units, started=now,
        )  # fmt: skip
        self._arms.admit(call, now)
        if call.test:
            expires = int(time.time()) + feedback_token.TTL_S
            token = FeedbackToken(call.test, call.variant, call.unit, os.urandom(8).hex(), expires)
            call.token = feedback_token.sign(self._signing_key, token)
        return call


def new_id() -> str:
    """A request id for a caller that brought none."""
    return f"req_{os.urandom(12).hex()}"


def common_headers(call: Call) -> list[tuple[bytes, bytes]]:
    """Headers of every answer to an admitted request."""
    headers = [(b"x-request-id", call.id.encode())]
    if call.test:
        headers += [
            (b"x-ab-test-id", call.test.encode()),
            (b"x-ab-test-variant", call.variant.encode()),
            (b"x-ab-feedback-token", call.token.encode()),
        ]
    return headers


class HttpSink:
    """An answer on its way over HTTP."""

    __slots__ = ("_connection", "_send")

    def __init__(self, send: Send, connection: Any) -> None:
        self._send = send
        self._connection = connection

    async def reply(self, call: Call, reply: Reply) -> None:
        """A whole answer."""
        headers = common_headers(call)
        headers.append((b"content-type", reply.content_type.encode()))
        headers.append((b"content-length", b"%d" % len(reply.body)))
        if reply.retry_after:
            headers.append((b"retry-after", b"%d" % reply.retry_after))
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": reply.body})

    async def start(self, call: Call, head: ReplyHead) -> None:
        """Status and headers; the body is chunked."""
        headers = common_headers(call)
        headers.append((b"content-type", head.content_type.encode()))
        if head.content_type.startswith("text/event-stream"):
            headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})

    async def write(self, piece: bytes) -> None:
        """The next chunk; waits while the client takes no more."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, piece: bytes) -> None:
        """The last chunk."""
        await self._send({"type": "http.response.body", "body": piece})

    async def abort(self) -> None:
        """Close without the last chunk, by which a client knows that something is missing."""
        self._connection.abandon()


class _Head:
    """What the router reads of a request's head."""

    __slots__ = ("announced", "authorization", "expects", "host", "own_id", "units")

    def __init__(self, scope: Scope) -> None:
        self.authorization: str | None = None
        self.own_id: bytes | None = None
        self.announced = 0
        self.expects = False
        self.units: dict[str, bytes] = {}
        self.host: str = scope["client"][0] if scope["client"] else ""
        for name, value in scope["headers"]:
            if name == b"authorization":
                self.authorization = value.decode("latin-1")
            elif name == b"content-length":
                self.announced = int(value)
            elif name == b"x-request-id":
                self.own_id = value
            elif name in _UNIT_HEADERS:
                self.units[_UNIT_HEADERS[name]] = value.strip()
            elif name == b"expect":
                self.expects = True


class HttpEdge:
    """The ASGI app of the inference paths."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path belongs to inference."""
        return path in PATHS or path == MODELS_PATH or path.startswith(MODELS_PATH + "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        route = PATHS.get(scope["path"])
        head = _Head(scope)
        gate = self._gate
        body: bytes | None = None
        try:
            gate.address(head.host)
            _method(scope["method"], "GET" if route is None else "POST", scope["path"])
            principal = gate.enter(head.authorization)
            if route is None:
                await self._models(scope["path"], head.own_id, send)
                return
            if head.announced > gate.max_body:
                raise too_large(gate.max_body)
            body = await _body(receive, gate.max_body)
            if body is None:
                return
            call = gate.call(
                route=route, body=body, principal=principal, units=head.units, own_id=head.own_id, host=head.host
            )
        except Refused as exc:
            gate.meters.refuse(exc.status)
            unread = body is None and not head.expects
            await _refuse(exc, head.own_id, receive, send, unread=unread, close=head.expects)
            return
        connection = scope["extensions"]["cypria"]
        connection.on_gone = call.leave
        try:
            await gate.server.serve(call, HttpSink(send, connection))
        finally:
            connection.on_gone = None

    async def _models(self, path: str, own_id: bytes | None, send: Send) -> None:
        models = [_model(info) for info in self._gate.models()]
        if path == MODELS_PATH:
            payload: Any = {"object": "list", "data": models}
        else:
            name = path[len(MODELS_PATH) + 1 :]
            payload = next((model for model in models if model["id"] == name), None)
            if payload is None:
                raise NotFound(f"the model '{name}' does not exist: GET /v1/models lists those that do",
                               param="model", code="model_not_found")  # fmt: skip
        await _whole(send, 200, _encode(payload), own_id, [])


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit."""
    return TooLarge(f"the body is over {limit} bytes: send a smaller one")


def _model(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": info.created, "owned_by": "cypria", "state": info.state}


def _method(method: str, wanted: str, path: str) -> None:
    if method != wanted:
        raise MethodNotAllowed(f"{method} is not offered at {path}: use {wanted}", param=wanted)


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when the client left. Raises TooLarge as soon as it is over the limit."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message["body"]
        if len(whole) > limit:
            raise too_large(limit)
        return whole
    parts: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        parts.append(message["body"])
        size += len(message["body"])
        if size > limit:
            raise too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    return None


async def _refuse(
    exc: Refused, own_id: bytes | None, receive: Receive, send: Send, *, unread: bool, close: bool
) -> None:
    reply = refusal(exc)
    extra = [(name.lower().encode(), value.encode()) for name, value in exc.headers().items()]
    if isinstance(exc, MethodNotAllowed) and exc.param:
        extra.append((b"allow", exc.param.encode()))
    if close:
        extra.append((b"connection", b"close"))
    await _whole(send, reply.status, reply.body, own_id, extra, more=unread)
    if unread:
        await _swallow(receive)
        await send({"type": "http.response.body", "body": b""})


async def _whole(
    send: Send, status: int, body: bytes, own_id: bytes | None, extra: list[tuple[bytes, bytes]], *, more: bool = False
) -> None:
    headers = [
        (b"x-request-id", (request_id(own_id) or new_id()).encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *extra,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _swallow(receive: Receive) -> None:
    """Take in the rest of a refused body, within bounds: closing on unread bytes would reset the connection."""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while size < DRAIN_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                size += len(message["body"])
    except TimeoutError:
        return
