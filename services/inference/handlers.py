"""`cypria.models.<verb>`: what this worker has, what would fit, and orders to this worker alone."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError

from schemas.v1.models import ModelPlan, ModelQuery
from schemas.v1.query import QueryError
from services._runtime.settings_engines import Model
from services.inference.adapters.beats import heartbeat
from services.inference.adapters.machine import Machine
from services.inference.adapters.models import Models, UnknownModelError
from services.inference.adapters.registered import Rules
from services.inference.adapters.served import Place
from services.inference.domain.lifecycle import LifecycleError, State

Plan = Callable[[Sequence[Model], dict[str, bool], dict[str, str]], Awaitable[ModelPlan]]
"""Of models; which of their names are loaded, and which are refused and why."""
Answer = tuple[bytes, bool] | None


class ModelHandlers:
    """Each takes a payload and gives (reply, whether it is an error), or None when it is for another worker."""

    def __init__(
        self, models: Models, machine: Machine, plan: Plan, rules: Rules, *, worker: str, pool: str
    ) -> None:
        self._models = models
        self._machine = machine
        self._make_plan = plan
        self._rules = rules
        self._worker = worker
        self._pool = pool

    async def list(self, payload: bytes) -> Answer:
        """All models of this worker, or the one named; an empty payload will do."""
        return await self._reply(payload or b"{}", self._list)

    async def load(self, payload: bytes) -> Answer:
        """Begin to load; progress comes as events and in heartbeats."""
        return await self._reply(payload, self._load)

    async def unload(self, payload: bytes) -> Answer:
        """Begin to drain and unload."""
        return await self._reply(payload, self._unload)

    async def plan(self, payload: bytes) -> Answer:
        """Would these models fit here? Without ``specs``: those that this worker has, or the one named."""
        return await self._reply(payload or b"{}", self._plan)

    async def _reply(self, payload: bytes, act: Callable[[ModelQuery], Awaitable[dict[str, Any]]]) -> Answer:
        try:
            query = ModelQuery.model_validate_json(payload)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return _error(
                f'expected {{"model": NAME}}: {where + ": " if where else ""}{first["msg"]}', "invalid_request"
            )
        if query.worker and query.worker != self._worker:
            return None
        try:
            return msgspec.json.encode({"worker": self._worker, **await act(query)}), False
        except UnknownModelError as exc:
            return _error(str(exc), "model_not_found")
        except LifecycleError as exc:
            return _error(str(exc), "conflict")
        except ValueError as exc:
            return _error(str(exc), "invalid_request")

    async def _list(self, query: ModelQuery) -> dict[str, Any]:
        places = [self._models.place(query.model)] if query.model else self._models.all()
        return {"pool": self._pool, "models": [self._describe(place) for place in places]}

    async def _load(self, query: ModelQuery) -> dict[str, Any]:
        self._models.begin_load(query.model)
        return {"model": query.model, "state": "verifying"}

    async def _unload(self, query: ModelQuery) -> dict[str, Any]:
        self._models.begin_unload(query.model)
        return {"model": query.model, "state": "draining"}

    async def _plan(self, query: ModelQuery) -> dict[str, Any]:
        if query.specs:
            configs = [self._config(index, spec) for index, spec in enumerate(query.specs)]
        elif query.model:
            configs = [self._models.place(query.model).config]
        else:
            configs = [place.config for place in self._models.all()]
        loaded = {}
        for config in configs:
            place = self._models.find(config.name)
            loaded[config.name] = bool(
                place
                and place.present.state is State.READY
                and place.present.config.model_dump() == config.model_dump()
            )
        refused = self._refused(configs) if query.specs else {}
        return (await self._make_plan(configs, loaded, refused)).model_dump(mode="json", exclude={"worker"})

    def _refused(self, configs: Sequence[Model]) -> dict[str, str]:
        """Why models may not be here. Whoever asks may name any file: nothing is said of those outside the rules."""
        found = {}
        for config in configs:
            try:
                self._rules.check(config)
            except ValueError as exc:
                found[config.name] = str(exc)
        return found

    def _config(self, index: int, spec: dict[str, Any]) -> Model:
        """The model of a spec; one with nothing but a name is one that this worker knows."""
        if set(spec) == {"name"}:
            return self._models.place(str(spec["name"])).config
        try:
            return Model.model_validate(spec)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False)[0]
            where = ".".join(str(part) for part in (index, *first["loc"]))
            raise ValueError(f"specs.{where}: {first['msg'].removeprefix('Value error, ')}") from None

    def _describe(self, place: Place) -> dict[str, Any]:
        beat = msgspec.to_builtins(heartbeat(place, self._worker, self._pool, self._machine.sample))
        wanted = place.wanted
        return {
            # What a heartbeat leaves out is at its default; those that read lists want to see it.
            "reason": "", "digest": "", "memory_bytes": 0, "capacity": 0, "running": 0, "queued": 0, "created": 0,
            "generation": 0, **beat,
            "desired": wanted.desired if wanted else ("loaded" if place.config.preload else "registered"),
            "source": "registry" if place.file != place.config else "configuration",
        }  # fmt: skip


def _error(message: str, code: str) -> tuple[bytes, bool]:
    return QueryError(message=message, code=code).model_dump_json().encode(), True
