"""The rest of the inference paths, as an ASGI app: models, and methods that are not offered."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from services.router.domain.errors import refusal
from services.router.domain.refusals import MethodNotAllowed, NotFound, Refused
from services.router.domain.request import PATHS, request_id
from services.router.edge.gate import MAX_SHOWN, Gate, new_id
from services.router.ports import ModelInfo

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MODELS_PATH = "/v1/models"

_encode = msgspec.json.Encoder().encode


class ModelsApp:
    """`GET /v1/models` and `/v1/models/{name}`. Requests to models never come here: `EdgeProtocol` takes them."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path belongs to inference."""
        return path in PATHS or path == MODELS_PATH or path.startswith(MODELS_PATH + "/")

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """One request."""
        headers = dict(scope["headers"])
        path, method = scope["path"], scope["method"]
        extra: dict[str, str] = {}
        try:
            host = scope["client"][0] if scope["client"] else ""
            self.gate.address(host)
            wanted = ("POST",) if path in PATHS else ("GET", "HEAD")
            if method not in wanted:
                extra = {"Allow": ", ".join(wanted)}
                raise MethodNotAllowed(f"{method} is not offered at {path}: use {' or '.join(wanted)}")
            authorization = headers.get(b"authorization")
            self.gate.enter(None if authorization is None else authorization.decode("latin-1"), host)
            status, body = 200, _encode(self._models(path))
        except Refused as exc:
            self.gate.meters.refuse(exc.status)
            status, body = exc.status, refusal(exc).body
            extra |= exc.headers()
        extra["X-Request-ID"] = request_id(headers.get(b"x-request-id")) or new_id()
        extra["Content-Type"] = "application/json"
        extra["Content-Length"] = str(len(body))
        named = [(name.lower().encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": body})

    def _models(self, path: str) -> Any:
        models = [_model(info) for info in self.gate.models()]
        if path == MODELS_PATH:
            return {"object": "list", "data": models}
        name = path[len(MODELS_PATH) + 1 :]
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            message = f"the model '{name[:MAX_SHOWN]}' does not exist: GET /v1/models lists those that do"
            raise NotFound(message, param="model", code="model_not_found")
        return found


def _model(info: ModelInfo) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": info.created, "owned_by": "cypria", "state": info.state}
