"""The registry of models as this worker sees it: what routers wrote into the KV bucket, turned into orders."""

import json

from pydantic import ValidationError

from schemas import streams
from schemas.v1.models import ModelEntry
from services._runtime.bus import Bus
from services._runtime.kv import KvMirror
from services._runtime.settings_engines import Model
from services._runtime.telemetry import get_logger
from services.inference.adapters.models import Models
from services.inference.adapters.registered import Rules
from services.inference.adapters.served import spec_of
from services.inference.domain.registry import Wanted

log = get_logger(__name__)

READ_S = 15.0
"""How long a worker that starts waits for the registry before it goes by its own configuration."""


class Registry:
    """Keeps `Models` as the bucket says. While the bus is away, what is loaded stays as it is."""

    def __init__(self, bus: Bus, models: Models, *, worker: str, pool: str, rules: Rules) -> None:
        self._models = models
        self._worker = worker
        self._pool = pool
        self._rules = rules
        self._reading = True
        self._mirror = KvMirror(bus, streams.MODELS.name, self._changed)

    async def start(self) -> frozenset[str]:
        """Read all of it, then follow it; the names that it decides about, so that nothing else loads those.

        When it cannot be read in time, the worker's own configuration stands until it can.
        """
        try:
            await self._mirror.start(READ_S)
        except TimeoutError:
            log.warning("registry_not_read", bucket=streams.MODELS.name, after_s=READ_S)
        self._reading = False
        decided = set()
        for key, (value, _) in list(self._mirror.entries.items()):
            if name := self._apply(key, value, first=True):
                decided.add(name)
        return frozenset(decided)

    async def stop(self) -> None:
        """Follow it no more."""
        await self._mirror.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._mirror.missing()

    def _changed(self, key: str, value: bytes | None, _revision: int) -> None:
        # An entry that is gone says nothing: what is to be unloaded is said to be so first.
        if value is not None and not self._reading:
            self._apply(key, value, first=False)

    def _apply(self, key: str, value: bytes, *, first: bool) -> str | None:
        """Take in an entry; the model's name when it decides about it."""
        try:
            entry = ModelEntry.model_validate_json(value)
        except ValidationError as exc:
            log.error("registry_entry_unusable", key=key, error=_words(exc))
            return None
        if not entry.name:
            log.error("registry_entry_unusable", key=key, error="name: is empty")
            return None
        if entry.stage == "claimed":
            if not first:
                return None
            # Not decided yet: until it is, what was before it holds.
            return self._apply(key, json.dumps(entry.before).encode(), first=True) if entry.before else None
        if first and entry.spec is not None:
            log.info("model_from_registry", model=entry.name, generation=entry.generation, desired=entry.desired)
        self._order(entry)
        return entry.name

    def _order(self, entry: ModelEntry) -> None:
        file = self._models.file(entry.name)
        spec = None if entry.desired == "removed" else entry.spec
        config, problem = file, ""
        if spec is not None:
            config, problem = self._read(entry.name, spec)
        if config is None or config.pool not in {None, self._pool}:
            # Nothing here: the model is another pool's, or nobody here knows what it is.
            self._models.want(entry.name, Wanted("removed", generation=entry.generation), None)
            return
        desired = entry.desired
        if desired == "removed":
            desired = "loaded" if config.preload else "unloaded"
        wanted = Wanted(
            desired,
            spec=spec_of(config, problem),
            generation=entry.generation,
            reload=entry.reload,
            # Turns are for those who change over now; and nobody stops serving for what cannot be loaded anyway.
            rolling=entry.strategy == "rolling" and entry.stage == "changing" and not problem,
            turn=self._worker in entry.turn,
        )
        self._models.want(entry.name, wanted, config, problem)

    def _read(self, name: str, spec: dict[str, object]) -> tuple[Model, str]:
        """(the spec as a model, why it cannot be loaded if so)."""
        try:
            model = Model.model_validate(spec)
        except ValidationError as exc:
            stand_in = Model.model_construct(name=name, engine=str(spec.get("engine", "")))
            return stand_in, f"the registered spec is refused: {_words(exc)}"
        except Exception as exc:
            # Whatever a spec can bring about, it must not end the worker.
            return Model.model_construct(name=name, engine=""), f"the registered spec is unusable: {exc!r}"
        try:
            self._check(name, model)
        except ValueError as exc:
            return model, str(exc)
        return model, ""

    def _check(self, name: str, model: Model) -> None:
        """Raises ValueError when the spec is not one that this worker may load."""
        if model.name != name:
            raise ValueError(
                f"name: the spec is of '{model.name}' and was registered as '{name}'; give both one name"
            )
        self._rules.check(model)


def _words(exc: ValidationError) -> str:
    """The first thing that is wrong; never what was given, which may hold a key."""
    first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return (f"{where}: " if where else "") + first["msg"].removeprefix("Value error, ")
