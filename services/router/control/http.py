"""The control API over HTTP: a FastAPI app whose routes all go through the dispatcher."""

import asyncio
import json
import secrets
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from services._runtime.health import SHIELD
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_feed import Feed
from services.router.control import asyncapi
from services.router.control.base import Call
from services.router.control.dispatch import Dispatcher, Reply, parse, refusal
from services.router.control.docs_page import add_docs
from services.router.control.events import stream
from services.router.control.links import links
from services.router.control.live import Live
from services.router.control.openapi import document, documented
from services.router.control.verbs import EVENTS, VERBS, Verb
from services.router.dashboard import add_dashboard
from services.router.domain.refusals import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    Refused,
    TooLarge,
    UnsupportedMedia,
    error_body,
)

log = get_logger(__name__)

DESCRIPTION = (
    "Start, watch and stop tests of one model against another. Errors: `{error: {message, type, param, code}}`."
)


def build_app(dispatcher: Dispatcher, feed: Feed, live: Live, max_body: int) -> FastAPI:
    """The ASGI app: control routes, /docs, /openapi.json, and errors in one shape for everything else."""
    app = FastAPI(
        title="Cypria", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    add_docs(app)
    add_dashboard(app)
    for verb in VERBS:
        _add(app, verb, dispatcher, max_body)
    _add_events(app, dispatcher, feed, live)
    app.add_api_route("/asyncapi.yaml", _asyncapi, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Exception, _broken)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


def _add(app: FastAPI, verb: Verb, dispatcher: Dispatcher, max_body: int) -> None:
    async def endpoint(request: Request) -> Response:
        # A body is taken in only from those who have a key: whoever has none must not fill the memory.
        known = dispatcher.knows(request.headers.get("authorization"), _peer(request))
        try:
            call = await _call(request, max_body if known else None)
        except Refused as exc:
            # Nothing of the body is known, but who sent it is: a refused command is audited like any other.
            bare = await _call(request, None)
            reply = await dispatcher.refuse(verb, bare, exc)
            # The connection ends: what is still to come of the body is not waited for.
            return _response(replace(reply, headers={**reply.headers, "Connection": "close"}), bare.request_id)
        if "accept" in verb.takes.model_fields and "accept" not in call.query:
            call = replace(call, query={**call.query, "accept": request.headers.get("accept", "")[:1024]})
        return _response(await dispatcher.dispatch(verb, call), call.request_id)

    if verb.method == "GET":  # HEAD as well, without an entry of its own in the document
        app.add_api_route(
            verb.http_path, endpoint, methods=["GET", "HEAD"], include_in_schema=False, response_model=None
        )
    good: dict[str, Any] = {"model": verb.gives} if verb.gives else {"description": "Done"}
    if found := links(verb.name):
        good["links"] = found
    app.add_api_route(
        verb.http_path, endpoint, methods=[verb.method], name=verb.name, summary=verb.summary, tags=[verb.tag],
        operation_id=verb.handler, response_model=None,
        responses={200: good}, openapi_extra=documented(verb),
    )  # fmt: skip


def _add_events(app: FastAPI, dispatcher: Dispatcher, feed: Feed, live: Live) -> None:
    async def endpoint(request: Request) -> Response:
        call = await _call(request, None)
        try:
            await dispatcher.admit(EVENTS, call)
            good = dispatcher.still_good(call)
            params = parse(EVENTS.takes, call)
        except Refused as exc:
            return _response(refusal(exc), call.request_id)
        headers = {"X-Request-ID": call.request_id, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        watched = live if params.live else None
        return StreamingResponse(stream(feed, good, watched), media_type="text/event-stream", headers=headers)

    app.add_api_route(
        EVENTS.http_path, endpoint, methods=["GET"], name="events", summary=EVENTS.summary, tags=[EVENTS.tag],
        operation_id="events", response_model=None,
        responses={200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}},
        openapi_extra=documented(EVENTS),
    )  # fmt: skip


async def _asyncapi(_request: Request) -> Response:
    text = await asyncio.to_thread(asyncapi.text)
    return Response(text, media_type="application/yaml", headers=SHIELD)


async def _call(request: Request, max_body: int | None) -> Call:
    """The call; with ``max_body`` None its body stays unread."""
    body = bytearray()
    if request.method not in {"GET", "HEAD"} and max_body is not None:
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding not in {"", "identity"}:
            raise UnsupportedMedia("the body has a Content-Encoding: send it as plain JSON")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > max_body:
            raise _too_large(max_body)
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_body:
                    raise _too_large(max_body)
        except ClientDisconnect:
            raise BadRequest("the body ended before its announced length: send all of it") from None
    return Call(
        authorization=request.headers.get("authorization"),
        request_id=_request_id(request),
        peer=_peer(request),
        body=bytes(body),
        query=dict(request.query_params),
        path={name: str(value) for name, value in request.path_params.items()},
    )


def _peer(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over {limit} bytes: send a smaller one")


def _request_id(request: Request) -> str:
    """The caller's own id where it can go into a header and a log line, else a new one."""
    own = request.headers.get("x-request-id", "")
    return (
        own if 0 < len(own) <= 128 and own.isascii() and own.isprintable() else f"req_{secrets.token_hex(12)}"
    )


def _response(reply: Reply, request_id: str) -> Response:
    headers = {"X-Request-ID": request_id, "Cache-Control": "no-store", **SHIELD}
    return Response(reply.body, reply.status, {**headers, **reply.headers}, media_type=reply.media)


async def _refused(request: Request, exc: Exception) -> Response:
    if not isinstance(exc, Refused):
        raise exc
    return _response(refusal(exc), _request_id(request))


async def _http_error(request: Request, exc: Exception) -> Response:
    if not isinstance(exc, HTTPException):
        raise exc
    headers = dict(exc.headers or {})
    refused: Refused
    if exc.status_code == 404:
        message = f"there is nothing at {request.url.path}: /docs lists what there is"
        refused = NotFound(message, code="unknown_path")
    elif exc.status_code == 405:
        headers.pop("allow", None)
        headers["Allow"] = allowed = _allowed(request)
        refused = MethodNotAllowed(f"{request.method} is not offered at {request.url.path}: use {allowed}")
    else:
        body = error_body(str(exc.detail), "invalid_request_error", None, "http_error")
        return _response(Reply(exc.status_code, json.dumps(body).encode(), headers), _request_id(request))
    reply = refusal(refused)
    return _response(Reply(reply.status, reply.body, {**headers, **reply.headers}), _request_id(request))


def _allowed(request: Request) -> str:
    """The methods of every route of that path; one path may have several.

    A model may be named like `x/load`: what a narrower path says is meant goes before that.
    """
    there = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    narrowest = getattr(there[0], "path", None) if there else None
    found: set[str] = set()
    for route in there:
        if getattr(route, "path", None) == narrowest:
            found |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(found))


async def _broken(request: Request, exc: Exception) -> Response:
    request_id = _request_id(request)
    log.error("request_failed", request_id=request_id, path=request.url.path, error=repr(exc))
    message = f"something went wrong inside; the log has it under request id {request_id}"
    body = error_body(message, "server_error", None, "internal_error")
    return _response(Reply(500, json.dumps(body).encode()), request_id)
