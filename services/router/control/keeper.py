"""Keeps the registry: a task in every router that carries out what `domain.keeping` decides, and loads on demand."""

import asyncio

from services._runtime.clock import monotonic, now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.control.orders import Orders
from services.router.control.parts import Parts
from services.router.domain import models
from services.router.domain.commands import Fail
from services.router.domain.keeping import (
    EndTest,
    GiveTurn,
    GoBack,
    LetGo,
    Settle,
    Step,
    TakeBack,
    steps,
)
from services.router.domain.models import DEMAND, KEEPER, Load, Unload
from services.router.domain.refusals import Refused

log = get_logger(__name__)

LOOK_S = 0.25
HEARD_S = 1.0
"""Heartbeats of so long must have come before anything is concluded from their absence."""
ASK_S = 1.0
"""A model is asked for on demand at most this often."""
KEPT_S = 10.0
"""What was used more recently makes no room for what is loaded on demand."""


class Keeper:
    """All routers do this; compare-and-set decides which of them acts."""

    def __init__(self, parts: Parts, orders: Orders) -> None:
        self._parts = parts
        self._orders = orders
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[str, float] = {}
        self._loads: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="models-keeper")

    async def stop(self) -> None:
        """End; what is left undone is done by another router or after a restart."""
        await end(self._task, *self._loads)

    def want(self, name: str) -> str | None:
        """A request has come for a model that no worker serves: what the keeper has unloaded is loaded again.

        Why the request need not wait, or None. Returns at once.
        """
        entry = models.standing(self._parts.models.entry(name))
        if entry is None or entry.desired != "unloaded":
            return None
        if entry.actor != KEEPER:
            why = f" ({entry.reason})" if entry.reason else ""
            return f"'{entry.actor}' has unloaded it{why}: an admin loads it with `cypria models load {name}`"
        now = monotonic()
        if now - self._asked.get(name, -ASK_S) >= ASK_S:
            self._asked[name] = now
            task = asyncio.create_task(self._load(name), name=f"demand-{name}")
            self._loads.add(task)
            task.add_done_callback(self._loads.discard)
        return None

    async def _load(self, name: str) -> None:
        try:
            await self._orders.have(Load(name, DEMAND, reason="a request asked for it"), KEPT_S)
        except Refused as exc:
            log.warning("not_loaded_on_demand", model=name, reason=exc.message)
        except Exception:
            log.exception("demand_failed", model=name)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._parts.path().connected_for() < HEARD_S:
                continue
            minutes = self._parts.settings.model_management.auto_unload_unused_minutes
            for step in steps(self._orders.field(minutes)):
                try:
                    await self._carry_out(step)
                except Refused as exc:
                    log.info("model_step_refused", step=type(step).__name__, reason=exc.message)
                except Exception:
                    log.exception("model_step_failed", step=type(step).__name__)

    async def _carry_out(self, step: Step) -> None:
        registry = self._parts.models
        match step:
            case TakeBack():
                entry = registry.entry(step.name)
                if entry is not None and entry.stage == "claimed" and entry.generation == step.generation:
                    await registry.take_back(entry)
            case Settle():
                await registry.advance(step.name, step.generation, lambda entry: models.settle(entry, now_ms()))
            case GiveTurn():
                await registry.advance(
                    step.name, step.generation,
                    lambda entry: entry if step.worker in entry.turn else models.give_turn(entry, step.worker),
                )  # fmt: skip
            case GoBack():
                log.warning("model_goes_back", model=step.name, reason=step.reason)
                await registry.advance(
                    step.name, step.generation, lambda entry: models.go_back(entry, step.reason, now_ms())
                )
            case LetGo():
                await self._orders.change(Unload(step.name, KEEPER, step.reason))
            case EndTest():
                log.warning("test_ended", test_id=step.test_id, reason=step.reason)
                command = Fail(step.test_id, step.reason, KEEPER)
                await self._parts.experiments.change(step.model_a, lambda _state: command)
                self._parts.outbox.kick(step.model_a)
