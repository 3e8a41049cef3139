"""The way of one engine from its files to ready, with its tries, and its end."""

import asyncio
import ctypes
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from services._runtime.clock import monotonic
from services._runtime.settings_engines import Loading
from services._runtime.telemetry import get_logger
from services.inference.adapters.apart import apart
from services.inference.adapters.engine import Engine
from services.inference.adapters.engines import MakeEngine, make_engine
from services.inference.adapters.integrity import Sources, unchanged, verified
from services.inference.adapters.planner import Planner, Promise
from services.inference.adapters.served import ServedModel
from services.inference.domain.lifecycle import ON_THE_WAY, State, advance, pause_s
from services.inference.vllm_host.frames import LASTING

log = get_logger(__name__)

GRACE_S = 5.0
"""How long a load that was cancelled may take to end before its engine is closed under it."""
CLOSE_S = 30.0
"""How long an engine may take to close before somebody is told."""

OnState = Callable[[ServedModel, float | None], None]
"""Called after each change of state with the engine's model and the seconds that the step before it took, if known."""


class LoadError(Exception):
    """A model that could not be loaded; the text is the reason."""


class SlowLoadError(LoadError):
    """It was not ready in time; it may be the next time."""


@dataclass(eq=False)
class Loader:
    """Loads engines and closes them. ``failed`` counts the tries that failed, by model, for those who measure."""

    on_state: OnState
    planner: Planner
    sources: Sources = field(default_factory=Sources)
    limits: Loading = field(default_factory=Loading)
    make: MakeEngine = make_engine
    pause: Callable[[int], float] = lambda failed: pause_s(failed, random.random())  # noqa: S311
    on_try: Callable[[str, str, float], None] = lambda _model, _result, _seconds: None
    _promises: dict[ServedModel, Promise | None] = field(default_factory=dict)
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def load(self, edition: ServedModel, tries: int) -> None:
        """Up to `warming` done, in at most ``tries`` tries (at least one). Raises LoadError with the reason.

        What failed is closed. What cannot pass (files that are not what they must be, a model that does not fit, a
        configuration that cannot be) is not tried again.
        """
        for failed in range(1, max(tries, 1) + 1):
            began = monotonic()
            try:
                await self._bounded(edition)
                self.on_try(edition.name, "ok", monotonic() - began)
                return
            except Exception as exc:
                reason = str(exc) or repr(exc)
                self.on_try(
                    edition.name, "timeout" if isinstance(exc, SlowLoadError) else "failed", monotonic() - began
                )
                log.error(
                    "model_failed", model=edition.name, state=str(edition.state), generation=edition.generation,
                    attempt=failed, error=reason,
                )  # fmt: skip
                if failed >= tries or isinstance(exc, LASTING):
                    raise LoadError(reason if failed == 1 else f"{reason} (after {failed} tries)") from exc
                pause = self.pause(failed)
                edition.doing, edition.progress = "waiting for the next try", -1.0
                edition.reason = f"try {failed} of {tries} failed, the next in {pause:.1f} s: {reason}"
                self.on_state(edition, None)
                await asyncio.sleep(pause)

    async def _bounded(self, edition: ServedModel) -> None:
        """One try in a task of its own: an engine that hears no cancellation must not hold up who waits for it."""
        attempt = asyncio.create_task(self._try(edition), name=f"load-{edition.name}")
        limit_s = self.limits.timeout_seconds
        try:
            await asyncio.wait({attempt}, timeout=limit_s)
        except asyncio.CancelledError:
            self.discard(edition, attempt)
            raise
        if attempt.done() and not attempt.cancelled() and attempt.exception() is None:
            return
        late = SlowLoadError(
            f"not ready within {limit_s:g} s ({edition.state}{f', {edition.doing}' if edition.doing else ''}): "
            "see the log of the engine, or raise model_management.loading.timeout_seconds"
        )
        ended = attempt.done() and not attempt.cancelled()
        # What is left of this try must be gone before the next one, or it would be in its way.
        await asyncio.wait({self.discard(edition, attempt)}, timeout=GRACE_S + CLOSE_S)
        raise (attempt.exception() if ended else None) or late

    async def _try(self, edition: ServedModel) -> None:
        attempt = edition.attempt = object()

        def still() -> None:
            if edition.dropped or edition.attempt is not attempt:
                raise asyncio.CancelledError  # given up meanwhile, and an engine has swallowed the cancellation

        still()
        began = monotonic()
        if edition.state is not State.VERIFYING:
            self.to(edition, State.VERIFYING)
        if edition.problem:
            raise ValueError(edition.problem)
        checked = await verified(
            edition.config, self.sources, force=edition.reread, progress=lambda doing, done: _note(edition, doing, done)
        )
        still()
        edition.digest = checked.digest
        edition.doing, edition.progress = "planning", -1.0
        promise, config = await self.planner.admit(checked.model, edition.key)
        self._promises[edition] = promise
        began = self.to(edition, State.LOADING, began)
        # In a thread: the first engine of its kind imports what may take seconds.
        engine = await apart(lambda: self.make(config), "engine")
        still()
        edition.engine = engine
        await engine.load(lambda doing, fraction: _note(edition, doing, fraction))
        # What was loaded is what was checked only if nothing changed in between.
        await apart(lambda: unchanged(checked), "unchanged")
        still()
        began = self.to(edition, State.WARMING, began)
        await engine.warm()
        still()
        await apart(give_back, "give-back")  # loading leaves as much again as the model takes, free and yet held
        still()
        edition.version = engine.version

    def leaving(self, edition: ServedModel) -> None:
        """Its memory will soon be free: who lacks some may wait for that."""
        if promise := self._promises.get(edition):
            promise.leaving = True

    def discard(self, edition: ServedModel, attempt: asyncio.Task[None] | None = None) -> asyncio.Task[None]:
        """Close an engine in the background, whatever it is doing; its memory is counted until it is closed."""
        edition.attempt = None
        engine, edition.engine = edition.engine, None
        promise = self._promises.pop(edition, None)
        if promise is not None:
            promise.leaving = True
        task = asyncio.create_task(self._discard(edition.name, engine, promise, attempt), name=f"close-{edition.name}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _discard(
        self, name: str, engine: Engine | None, promise: Promise | None, attempt: asyncio.Task[None] | None
    ) -> None:
        if attempt is not None and not attempt.done():
            attempt.cancel()
            await asyncio.wait({attempt}, timeout=GRACE_S)
        if engine is not None:
            closing = asyncio.create_task(_closed(name, engine))
            _, late = await asyncio.wait({closing}, timeout=CLOSE_S)
            if late:
                log.error("engine_close_hangs", model=name, after_s=CLOSE_S)
                await closing
            await apart(give_back, "give-back")
        self.planner.release(promise)

    async def stop(self, limit_s: float) -> None:
        """Wait for what is being closed, but no longer than ``limit_s`` seconds."""
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=limit_s)

    def to(self, edition: ServedModel, state: State, began: float | None = None) -> float:
        """Change the state and say so; the time now, which is when the next step begins."""
        edition.state = advance(edition.state, state)
        if state is not State.FAILED:
            edition.reason = edition.after if state in ON_THE_WAY else ""
        edition.doing, edition.progress = "", -1.0
        now = monotonic()
        self.on_state(edition, None if began is None else now - began)
        return now


def _note(edition: ServedModel, doing: str, fraction: float) -> None:
    edition.doing, edition.progress = doing, fraction


async def _closed(name: str, engine: Engine) -> None:
    try:
        await engine.close()
    except Exception as exc:
        # The model is leaving anyway; what its engine says about that must not keep the others.
        log.warning("engine_close_failed", model=name, error=repr(exc))


def give_back() -> None:
    """Have the allocator return to the system what it holds and nobody uses (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library: it has its own ways
