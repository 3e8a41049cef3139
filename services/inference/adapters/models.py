"""The models that this worker has, and their way from registered to ready and back."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from services._runtime.clock import monotonic, now_ms
from services._runtime.settings_engines import Model
from services._runtime.telemetry import get_logger
from services.inference.adapters.engine import Engine
from services.inference.adapters.engines import MakeEngine, import_engine, make_engine
from services.inference.adapters.integrity import Sources, unchanged, verified
from services.inference.domain.admission import Admission
from services.inference.domain.cost import Prices
from services.inference.domain.lifecycle import LOADABLE, LifecycleError, State, advance

if TYPE_CHECKING:
    from services.inference.adapters.job import Job

log = get_logger(__name__)

class UnknownModelError(LookupError):
    """This worker has no such model."""


class ServedModel:
    """One model: configuration, engine, state, and who runs or waits."""

    def __init__(self, config: Model) -> None:
        self.config = config
        self.engine: Engine | None = None
        self.state = State.REGISTERED
        self.reason = ""
        self.digest = config.digest or ""
        self.created = 0
        self.admission: Admission[Job] = Admission(config.max_concurrency, config.max_queue)
        self.prices = Prices(config.cost.prompt_per_1k, config.cost.completion_per_1k, config.cost.gpu_second)
        self.idle = asyncio.Event()
        self.idle.set()
        self.lock = asyncio.Lock()

    @property
    def name(self) -> str:
        """What clients send as ``model``."""
        return self.config.name

    def memory_bytes(self) -> int:
        """Memory of the loaded model in this process."""
        return self.engine.memory_bytes() if self.engine else 0


OnState = Callable[[ServedModel, float | None], None]
"""Called after each change of state with the model and the seconds that the step before it took, if known."""


class Models:
    """Loads and unloads; one step at a time for each model."""

    def __init__(
        self, configs: Sequence[Model], sources: Sources, on_state: OnState, make: MakeEngine = make_engine
    ) -> None:
        self._served = {config.name: ServedModel(config) for config in configs}
        self._sources = sources
        self._on_state = on_state
        self._make = make
        self._tasks: set[asyncio.Task[None]] = set()

    def all(self) -> list[ServedModel]:
        """Every model, in the order of the configuration."""
        return list(self._served.values())

    def get(self, name: str) -> ServedModel:
        """Raises UnknownModelError."""
        try:
            return self._served[name]
        except KeyError:
            raise UnknownModelError(f"no model '{name}' on this worker: add it to 'models'") from None

    def missing(self) -> str | None:
        """For readiness: the preloaded models that are not ready, with their state and reason."""
        waiting = [
            f"{model.name} is {model.state}" + (f" ({model.reason})" if model.reason else "")
            for model in self._served.values()
            if model.config.preload and model.state not in {State.READY, State.UNLOADED}
        ]
        return "; ".join(waiting) or None

    def preload(self) -> None:
        """Begin to load what the configuration wants loaded at start; returns at once."""
        self._spawn(self._preload([model for model in self._served.values() if model.config.preload]))

    async def _preload(self, wanted: list[ServedModel]) -> None:
        # Importing torch holds up the event loop for a second: before any model serves, not after.
        for engine in {model.config.engine for model in wanted}:
            try:
                await asyncio.to_thread(import_engine, engine)
            except ImportError as exc:
                log.warning("engine_not_installed", engine=engine, error=str(exc))
        for model in wanted:
            if model.state in LOADABLE and not model.lock.locked():
                self._spawn(self.load(model))

    def begin_load(self, model: ServedModel) -> None:
        """Load in the background. Raises LifecycleError unless the state allows it."""
        if model.state not in LOADABLE or model.lock.locked():
            raise LifecycleError(f"model '{model.name}' is {model.state}: only an unloaded or failed one can be loaded")
        self._spawn(self.load(model))

    def begin_unload(self, model: ServedModel) -> None:
        """Drain and unload in the background. Raises LifecycleError unless the model is ready."""
        if model.state is not State.READY:
            raise LifecycleError(f"model '{model.name}' is {model.state}: only a ready one can be unloaded")
        self._spawn(self.unload(model))

    def begin_drain(self) -> None:
        """No ready model takes another request from now on."""
        for model in self._served.values():
            if model.state is State.READY:
                self._to(model, State.DRAINING)

    async def load(self, model: ServedModel) -> None:
        """All steps to ready; any error ends in failed, with its reason."""
        async with model.lock:
            began = monotonic()
            self._to(model, State.VERIFYING)
            try:
                checked = await verified(model.config, self._sources)
                model.digest = checked.digest
                began = self._to(model, State.LOADING, began)
                # In a thread: the first engine of its kind imports what may take seconds.
                model.engine = await asyncio.to_thread(self._make, checked.model)
                await model.engine.load()
                await asyncio.to_thread(unchanged, checked)
                began = self._to(model, State.WARMING, began)
                await model.engine.warm()
                model.created = now_ms() // 1000
                self._to(model, State.READY, began)
            except Exception as exc:
                log.error("model_failed", model=model.name, state=str(model.state), error=str(exc) or repr(exc))
                await self._close(model)
                model.reason = str(exc) or repr(exc)
                self._to(model, State.FAILED, began)

    async def unload(self, model: ServedModel) -> None:
        """Take no more, let all that is here finish (their total timeout bounds it), then free the engine."""
        async with model.lock:
            if model.state is not State.READY:
                return
            began = monotonic()
            self._to(model, State.DRAINING)
            await model.idle.wait()
            await self._close(model)
            self._to(model, State.UNLOADED, began)

    def check(self) -> None:
        """Mark models whose engine has died as failed."""
        for model in self._served.values():
            reason = model.engine.dead() if model.engine and model.state is State.READY else None
            if reason:
                model.reason = reason
                self._to(model, State.FAILED)

    async def close(self) -> None:
        """Close every engine. Requests must have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in self._served.values():
            await self._close(model)
            if model.state is State.DRAINING:
                self._to(model, State.UNLOADED)

    async def _close(self, model: ServedModel) -> None:
        engine, model.engine = model.engine, None
        if engine is None:
            return
        try:
            await engine.close()
        except Exception as exc:
            # The model is leaving anyway; what its engine says about that must not keep the others.
            log.warning("engine_close_failed", model=model.name, error=repr(exc))

    def _to(self, model: ServedModel, state: State, began: float | None = None) -> float:
        model.state = advance(model.state, state)
        if state is not State.FAILED:
            model.reason = ""
        now = monotonic()
        self._on_state(model, None if began is None else now - began)
        return now

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
