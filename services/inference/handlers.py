"""`cypria.models.<verb>`: what this worker has, and orders to load and unload."""

from typing import Any

import msgspec

from schemas.v1.query import QueryError
from services.inference.adapters.models import Models, ServedModel, UnknownModelError
from services.inference.domain.lifecycle import LifecycleError


class ModelCommand(msgspec.Struct):
    """``worker`` restricts a command to one worker; without it every worker that has the model obeys."""

    model: str = ""
    worker: str = ""


class ModelHandlers:
    """Each takes a payload and gives (reply, whether it is an error), or None when it is for another worker."""

    def __init__(self, models: Models, worker: str) -> None:
        self._models = models
        self._worker = worker

    def list(self, payload: bytes) -> tuple[bytes, bool] | None:
        """All models of this worker; an empty payload will do."""
        return self._reply(payload or b"{}", self._list)

    def load(self, payload: bytes) -> tuple[bytes, bool] | None:
        """Begin to load; progress comes as `model.state` events and in heartbeats."""
        return self._reply(payload, self._load)

    def unload(self, payload: bytes) -> tuple[bytes, bool] | None:
        """Begin to drain and unload."""
        return self._reply(payload, self._unload)

    def _reply(self, payload: bytes, act: Any) -> tuple[bytes, bool] | None:
        try:
            command = msgspec.json.decode(payload, type=ModelCommand)
        except msgspec.DecodeError as exc:
            return _error(f'expected {{"model": NAME}}: {exc}', "invalid_request")
        if command.worker and command.worker != self._worker:
            return None
        try:
            return msgspec.json.encode({"worker": self._worker, **act(command)}), False
        except UnknownModelError as exc:
            return _error(str(exc), "model_not_found")
        except LifecycleError as exc:
            return _error(str(exc), "conflict")

    def _list(self, _command: ModelCommand) -> dict[str, Any]:
        return {"models": [_describe(model) for model in self._models.all()]}

    def _load(self, command: ModelCommand) -> dict[str, Any]:
        model = self._models.get(command.model)
        self._models.begin_load(model)
        return {"model": model.name, "state": "verifying"}

    def _unload(self, command: ModelCommand) -> dict[str, Any]:
        model = self._models.get(command.model)
        self._models.begin_unload(model)
        return {"model": model.name, "state": "draining"}


def _error(message: str, code: str) -> tuple[bytes, bool]:
    return QueryError(message=message, code=code).model_dump_json().encode(), True


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "model": model.name,
        "engine": model.config.engine,
        "state": model.state.value,
        "reason": model.reason,
        "digest": model.digest,
        "memory_bytes": model.memory_bytes(),
        "capacity": model.admission.capacity,
        "running": model.admission.running,
        "queued": model.admission.queued,
        "created": model.created,
    }
