"""The models that this worker has, kept as the configuration and the registry want them."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from services._runtime.clock import monotonic, now_ms
from services._runtime.settings_engines import Model
from services._runtime.telemetry import get_logger
from services.inference.adapters.apart import apart
from services.inference.adapters.engines import import_engine
from services.inference.adapters.loading import GRACE_S, Loader, LoadError
from services.inference.adapters.served import Place, ServedModel, spec_of
from services.inference.domain.lifecycle import HEALTHY_S, HUNG_S, LOADABLE, ON_THE_WAY, LifecycleError, State, pause_s
from services.inference.domain.planning import PlanError
from services.inference.domain.registry import Step, Wanted, decide

log = get_logger(__name__)


class UnknownModelError(LookupError):
    """This worker has no such model."""


class Models:
    """Every model by its name. Each change of what is wanted, and each end of a step, asks for the next step.

    What follows from that (loads, drains) goes on in the background. ``on_forgotten`` is called with the name of a
    model that is here no more.
    """

    def __init__(
        self, configs: Sequence[Model], loader: Loader, on_forgotten: Callable[[str], None] = lambda _name: None
    ) -> None:
        self._loader = loader
        self._on_forgotten = on_forgotten
        self._files = {config.name: config for config in configs}
        self._places = {config.name: _place(config, config) for config in configs}
        self._loads: dict[ServedModel, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def all(self) -> list[Place]:
        """Everything that is here, in the order in which it came."""
        return list(self._places.values())

    def find(self, name: str) -> Place | None:
        """What is here under a name."""
        return self._places.get(name)

    def place(self, name: str) -> Place:
        """As `find`. Raises UnknownModelError."""
        try:
            return self._places[name]
        except KeyError:
            raise UnknownModelError(
                f"no model '{name}' on this worker: add it to 'models', or register it with the router"
            ) from None

    def get(self, name: str) -> ServedModel:
        """The engine that requests of that name go to. Raises UnknownModelError."""
        return self.place(name).present

    def file(self, name: str) -> Model | None:
        """What this worker's own configuration says of a model."""
        return self._files.get(name)

    def files(self) -> list[Model]:
        """What this worker's own configuration has."""
        return list(self._files.values())

    def missing(self) -> str | None:
        """For readiness: the preloaded models that are not ready, with their state and reason."""
        waiting = []
        for place in self._places.values():
            present = place.present
            wanted = place.wanted is None or place.wanted.desired == "loaded"
            if place.file and place.file.preload and wanted and present.state not in {State.READY, State.UNLOADED}:
                reason = f" ({present.reason})" if present.reason else ""
                waiting.append(f"{place.name} is {present.state}{reason}")
        return "; ".join(waiting) or None

    def preload(self, decided: Collection[str] = ()) -> None:
        """Begin to load what the configuration wants at start, but for those that the registry has ``decided``."""
        self._spawn(self._preload([p for p in self._places.values() if p.name not in decided and p.config.preload]))

    async def _preload(self, places: list[Place]) -> None:
        # Importing torch holds up the event loop for a second: before any model serves, not after.
        for engine in {place.config.engine for place in places}:
            try:
                await apart(lambda engine=engine: import_engine(engine), "import")  # type: ignore[misc]
            except (ImportError, ValueError) as exc:
                log.warning("engine_not_installed", engine=engine, error=str(exc))
        for place in places:
            if place.wanted is None and self._places.get(place.name) is place:
                self.want(place.name, Wanted("loaded", spec_of(place.config)), place.config)

    def want(self, name: str, wanted: Wanted, config: Model | None, problem: str = "") -> None:
        """From now on this is wanted of a model; ``config`` goes with ``loaded``, ``problem`` is why it cannot be."""
        place = self._places.get(name)
        if place is None:
            if config is None:
                return
            place = self._places[name] = _place(config, self._files.get(name))
        if config is not None:
            place.config = config
        place.wanted, place.problem = wanted, problem
        self._settle(place)

    def begin_load(self, name: str) -> None:
        """Load what is unloaded or failed, as it was last wanted. Raises LifecycleError unless the state allows it."""
        place = self.place(name)
        present = place.present
        if present.state not in LOADABLE:
            raise LifecycleError(f"model '{name}' is {present.state}: only an unloaded or failed one can be loaded")
        place.deaths = 0
        place.present = ServedModel(place.config, present.generation, place.problem)
        self.want(name, Wanted("loaded", place.present.spec, present.generation), place.config, place.problem)

    def begin_unload(self, name: str) -> None:
        """Drain and unload. Raises LifecycleError unless the model is ready."""
        place = self.place(name)
        if place.present.state is not State.READY:
            raise LifecycleError(f"model '{name}' is {place.present.state}: only a ready one can be unloaded")
        self.want(name, Wanted("unloaded", generation=place.present.generation), None)

    def begin_drain(self) -> None:
        """Nothing is loaded and no model takes another request from now on: the worker stops."""
        self._stopping = True
        for place in self._places.values():
            for edition in (place.successor, place.present):
                if edition is not None and edition.state in ON_THE_WAY:
                    self._give_up(place, edition)
            if place.present.state is State.READY:
                self._loader.to(place.present, State.DRAINING)

    def check(self) -> None:
        """Look after the engines that serve: one that died has failed, and is loaded again while it has tries left."""
        now = monotonic()
        for place in self.all():
            present = place.present
            if present.state is not State.READY or present.engine is None:
                continue
            reason = present.engine.dead()
            if not reason and present.health().silent_s > HUNG_S:
                reason = f"it has shown no sign of life for {HUNG_S:g} s"
            if reason:
                self._died(place, present, reason)
            elif place.deaths and now - present.ready_at > HEALTHY_S:
                place.deaths = 0

    async def close(self, limit_s: float = 3.0) -> None:
        """Close every engine. Requests must have ended. What hangs is left to itself after ``limit_s`` seconds."""
        self._stopping = True
        loads = set(self._loads.values())
        for task in (*loads, *self._tasks):
            task.cancel()
        if loads:
            await asyncio.wait(loads, timeout=1.0)
        for place in self.all():
            for edition in place.editions:
                self._loader.discard(edition)
                if edition.state is State.DRAINING:
                    self._loader.to(edition, State.UNLOADED)
        await self._loader.stop(limit_s)

    def _settle(self, place: Place) -> None:
        """Take the steps that can be taken now."""
        wanted = place.wanted
        while wanted is not None and not self._stopping:
            successor = place.successor
            step = decide(place.present.held, successor.held if successor else None, wanted)
            if step is Step.NOTHING:
                return
            self._take(place, step, wanted)
            if step is Step.FORGET:
                return

    def _take(self, place: Place, step: Step, wanted: Wanted) -> None:
        present, successor = place.present, place.successor
        if step is Step.ADOPT:
            present.generation = wanted.generation
            self._loader.on_state(present, None)
        elif step is Step.LOAD:
            place.present = _edition(place, wanted)
            self._begin(place, place.present)
        elif step is Step.LOAD_NEXT:
            place.successor = _edition(place, wanted)
            self._begin(place, place.successor)
        elif step is Step.DROP_NEXT and successor is not None:
            self._give_up(place, successor)
        elif step is Step.ABANDON:
            self._give_up(place, present)
        elif step is Step.UNLOAD:
            self._loader.to(present, State.DRAINING)
            self._spawn(self._drain(place, present))
        elif step is Step.REST:
            present.generation = wanted.generation
            if present.state is State.UNLOADED:
                self._loader.on_state(present, None)
            else:
                self._loader.to(present, State.UNLOADED)
        elif step is Step.FORGET:
            del self._places[place.name]
            self._on_forgotten(place.name)

    def _begin(self, place: Place, edition: ServedModel) -> None:
        self._loader.to(edition, State.VERIFYING)
        task = asyncio.create_task(self._load(place, edition), name=f"life-{edition.name}")
        self._loads[edition] = task
        task.add_done_callback(lambda _: self._loads.pop(edition, None))

    async def _load(self, place: Place, edition: ServedModel) -> None:
        tries = self._loader.limits.retry_attempts + 1 - place.deaths
        try:
            await self._loader.load(edition, tries)
        except LoadError as exc:
            edition.reason = str(exc)
            if edition is place.successor:
                edition.reason += "; the present one goes on"
                if isinstance(exc.__cause__, PlanError):
                    edition.reason += ", which the strategy rolling would unload first"
            self._loader.to(edition, State.FAILED)
        else:
            edition.created, edition.ready_at = now_ms() // 1000, monotonic()
            if edition is place.successor:
                self._switch(place, edition)
            self._loader.to(edition, State.READY)
        self._settle(place)

    def _switch(self, place: Place, edition: ServedModel) -> None:
        """The next request goes to the new engine; the old one finishes what it has."""
        old, place.present, place.successor = place.present, edition, None
        place.deaths = 0
        if old.state is State.READY:
            place.leaving.append(old)
            self._loader.to(old, State.DRAINING)
            self._spawn(self._drain(place, old))

    async def _drain(self, place: Place, edition: ServedModel) -> None:
        """Let all that is here finish (their total timeout bounds it), then free the engine."""
        began = monotonic()
        self._loader.leaving(edition)
        await edition.idle.wait()
        await asyncio.shield(self._loader.discard(edition))
        if edition in place.leaving:
            place.leaving.remove(edition)
        self._loader.to(edition, State.UNLOADED, began)
        self._settle(place)

    def _give_up(self, place: Place, edition: ServedModel) -> None:
        """End a load, or what is left of one that failed."""
        edition.dropped = True
        if task := self._loads.pop(edition, None):
            task.cancel()
        if edition is place.successor:
            place.successor = None
        if edition.state in ON_THE_WAY:
            self._loader.to(edition, State.UNLOADED)

    def _died(self, place: Place, present: ServedModel, reason: str) -> None:
        place.deaths += 1
        tries = self._loader.limits.retry_attempts
        again = place.deaths <= tries and not self._stopping
        present.reason = reason
        if not again and tries:
            present.reason += (
                f" ({place.deaths} times now, more than model_management.loading.retry_attempts ({tries}) allows: load "
                "it again once the cause is mended)"
            )
        self._loader.to(present, State.FAILED)
        self._spawn(self._bury(place, present, again=again))

    async def _bury(self, place: Place, present: ServedModel, *, again: bool) -> None:
        """Close an engine that has died, and load it again after a pause."""
        with contextlib.suppress(TimeoutError):
            # What it had ends with errors of its own, if the engine is still able to say so.
            await asyncio.wait_for(present.idle.wait(), GRACE_S)
        pause = pause_s(place.deaths, random.random()) if again else 0.0  # noqa: S311
        await asyncio.gather(asyncio.shield(self._loader.discard(present)), asyncio.sleep(pause))
        if again and place.present is present and place.wanted is not None and place.wanted.desired == "loaded":
            place.restarts += 1
            place.present = ServedModel(place.config, present.generation)
            place.present.after = f"loaded again, as the engine before it ended: {present.reason}"
            self._settle(place)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _edition(place: Place, wanted: Wanted) -> ServedModel:
    edition = ServedModel(place.config, wanted.generation, place.problem)
    edition.spec = wanted.spec  # what it is loaded for, or it would be loaded again and again
    new = place.present.state is State.REGISTERED
    edition.after = place.present.after if new else ""
    # Whoever orders it anew wants to know what its files are; a worker that starts finds that order as well.
    edition.reread = wanted.reload and not new
    return edition


def _place(config: Model, file: Model | None) -> Place:
    return Place(config.name, file, ServedModel(config), config)
