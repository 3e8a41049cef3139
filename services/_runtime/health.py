"""`/health`, `/ready` and `/metrics`, the same for every service."""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from services._runtime.telemetry import render_metrics
from services._runtime.vitals import Ready

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SHIELD = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Whatever is answered is data: a browser that shows it runs nothing, loads nothing and lets nobody frame it."""


class Readiness:
    """What a process still lacks before it can serve.

    A check is a function that returns None when satisfied, else what is missing, in words.
    """

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], str | None]] = {}

    def add(self, name: str, check: Callable[[], str | None]) -> None:
        """Add or replace a check."""
        self._checks[name] = check

    def missing(self) -> dict[str, str]:
        """What is missing, by check; a check that raises is missing too."""
        found = {}
        for name, check in self._checks.items():
            try:
                reason = check()
            except Exception as exc:
                reason = f"check failed: {type(exc).__name__}"
            if reason is not None:
                found[name] = reason
        return found


async def respond(
    send: Send, status: int, body: bytes, content_type: str = "application/json", extra: Mapping[str, str] | None = None
) -> None:
    """One whole HTTP response; ``extra`` are further headers."""
    headers = [
        *((name.lower().encode(), value.encode()) for name, value in {**SHIELD, **(extra or {})}.items()),
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def routes(service: str, readiness: Readiness) -> list[tuple[str, AsgiApp]]:
    """ASGI routes of the three operations endpoints."""

    async def health(_scope: Scope, _receive: Receive, send: Send) -> None:
        await respond(send, 200, json.dumps({"status": "ok", "service": service}).encode())

    async def ready(_scope: Scope, _receive: Receive, send: Send) -> None:
        missing = readiness.missing()
        body = {"status": "unready" if missing else "ready", "service": service, "missing": missing}
        await respond(send, 503 if missing else 200, json.dumps(body).encode())

    vitals = Ready(service, readiness.missing)

    async def metrics(scope: Scope, _receive: Receive, send: Send) -> None:
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        body, content_type = render_metrics(accept.decode("latin-1"), vitals)
        await respond(send, 200, body, content_type)

    return [("/health", _reading(health)), ("/ready", _reading(ready)), ("/metrics", _reading(metrics))]


def _reading(endpoint: AsgiApp) -> AsgiApp:
    """The endpoint for those who read; 405 for every other method."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in {"GET", "HEAD"}:
            await endpoint(scope, receive, send)
            return
        message = f"{scope['method']} is not offered at {scope['path']}: use GET or HEAD"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "method_not_allowed"}
        await respond(send, 405, json.dumps({"error": error}).encode(), extra={"Allow": "GET, HEAD"})

    return guarded
