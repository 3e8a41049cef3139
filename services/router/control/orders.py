"""How a change of the registry is made: room found, claimed, checked against live tests, confirmed."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from schemas.v1.inference import Heartbeat
from schemas.v1.models import ModelEntry, ModelPlan
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_plans import NatsPlans
from services.router.control.parts import Parts
from services.router.domain import keeping
from services.router.domain.keeping import Field, Room
from services.router.domain.models import (
    KEEPER,
    Claim,
    Command,
    Load,
    Register,
    Seen,
    Unload,
    claim,
    refuse_more,
    refuse_under,
)
from services.router.domain.refusals import Conflict, Refused

log = get_logger(__name__)

ROOM_S = 15.0
"""How long a load waits for what makes room for it."""
_LOOK_S = 0.05
NO_WORKER = "no worker that it is for is alive: it will be loaded when one comes"


class Orders:
    """Carries out commands on models. All methods raise Refused."""

    def __init__(self, parts: Parts, plans: NatsPlans) -> None:
        self._parts = parts
        self._plans = plans

    def seen(self, name: str) -> Seen:
        """What heartbeats and the configuration tell of a model."""
        beats = tuple(beat for beat in self._parts.path().beats() if beat.model == name)
        return Seen(beats, self._parts.settings.model(name) is not None)

    def field(self, unused_minutes: float = 0.0) -> Field:
        """Everything at this moment."""
        return Field(
            self._parts.models.entries(), self._parts.path().beats(), self._parts.experiments.live(), now_ms(),
            unused_minutes,
        )  # fmt: skip

    async def plan(self, specs: list[dict[str, Any]]) -> list[ModelPlan]:
        """What every living worker says of these models."""
        workers = {beat.worker for beat in self._parts.path().beats()}
        return await self._plans.plan(specs, workers)

    def configured(self, name: str) -> dict[str, Any]:
        """The configuration's entry of a model; its name alone means that of each worker."""
        own = self._parts.settings.model(name)
        return own.model_dump(mode="json", exclude_unset=True) if own else {"name": name}

    async def change(self, command: Command) -> Claim:
        """Claim, look at the tests afresh, confirm; or take the claim back."""
        if not isinstance(command, Load):
            refuse_under(command.name, self._parts.experiments.live())
        made = await self._parts.models.claim(command, self.seen(command.name))
        claimed = made.entry
        if claimed is None:
            return made
        try:
            if made.guarded:
                refuse_under(command.name, await self._parts.experiments.fresh_live())
            await self._parts.models.confirm(claimed)
        except Exception:
            await self._take_back(claimed)
            raise
        log.info("model_wanted", model=claimed.name, desired=claimed.desired, generation=claimed.generation,
                 actor=claimed.actor, reason=claimed.reason)  # fmt: skip
        return made

    async def have(self, command: Register | Load, idle_s: float = 0.0) -> tuple[Claim, str]:
        """`change`, once a worker has said that it can take the model; and a word on what is not as expected.

        Makes room on workers that hold as many models as they may, of models unused for ``idle_s`` seconds.
        """
        entry = self._parts.models.entry(command.name)
        asked = claim(entry, command, self.seen(command.name), now_ms())
        if asked.entry is None:
            return asked, ""
        if asked.guarded:
            refuse_under(command.name, self._parts.experiments.live())
        if isinstance(command, Register):
            refuse_more(command.name, self._parts.models.entries())
        note = await self._find_room(asked.entry, idle_s)
        return await self.change(command), note

    async def _find_room(self, entry: ModelEntry, idle_s: float) -> str:
        spec = entry.spec
        if spec is None:
            spec = self.configured(entry.name)
        pool = spec.get("pool")
        plans = [plan for plan in await self.plan([spec]) if pool in {None, plan.pool}]
        if not plans:
            return NO_WORKER
        field = self.field()
        takes_place = spec.get("engine") != keeping.FREE
        found = keeping.room(entry.name, plans, field, idle_s) if takes_place else Room()
        self._somebody_takes(entry, plans, found)
        for victim in found.victims:
            await self.change(Unload(victim, KEEPER, f"to make room for '{entry.name}'"))
        if found.victims and not await _eventually(lambda: self._gone(found.victims)):
            raise Conflict(
                f"{_names(found.victims)} did not unload within {ROOM_S:g} s to make room for '{entry.name}': "
                "try again", param="name", code="too_many_models", retry_after_s=5,
            )  # fmt: skip
        return f"unloaded to make room: {_names(found.victims)}" if found.victims else ""

    def _somebody_takes(self, entry: ModelEntry, plans: list[ModelPlan], found: Room) -> None:
        """Raises Conflict with the workers' own words where none of them can take the model."""
        # By turns, each worker gives up the old one before it loads the new one.
        rolls = entry.strategy == "rolling"
        old = {b.worker: b.memory_bytes + b.gpu_memory_bytes for b in self.seen(entry.name).beats if rolls}
        said: list[str] = []
        codes: set[str] = set()
        for plan in plans:
            need = next((need for need in plan.needs if need.model == entry.name), None)
            code = keeping.refusal(plan, need, found, old.get(plan.worker, 0))
            if need is None or code is None:
                return
            codes.add(code)
            holders = found.full.get(plan.worker)
            said.append(f"{plan.worker}: {need.message}" + (f" (in use: {holders})" if holders else ""))
        rather_roll = entry.has_previous and not rolls and "insufficient_memory" in codes
        hint = "; strategy rolling needs no memory for both" if rather_roll else ""
        raise Conflict(
            f"no worker can take model '{entry.name}': {'; '.join(said)}{hint}", param="name",
            code=next(code for code in keeping.REFUSALS if code in codes),
        )  # fmt: skip

    def _gone(self, names: Iterable[str]) -> bool:
        entries = self._parts.models.entries()
        beats = self._parts.path().beats()

        def is_gone(name: str) -> bool:
            entry = entries.get(name)
            mine: list[Heartbeat] = [beat for beat in beats if beat.model == name]
            return entry is None or all(keeping.reached(entry, beat) for beat in mine)

        return all(is_gone(name) for name in names)

    async def _take_back(self, claimed: ModelEntry) -> None:
        try:
            await self._parts.models.take_back(claimed)
        except Refused as exc:
            # Whoever sees it when it is old enough takes it back.
            log.warning("claim_not_taken_back", model=claimed.name, error=exc.message)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


async def _eventually(check: Callable[[], bool]) -> bool:
    end = monotonic() + ROOM_S
    while not check():
        if monotonic() > end:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
