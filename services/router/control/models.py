"""The registry's verbs: what models there are, and orders to have others."""

import json
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from schemas.v1.inference import Heartbeat
from schemas.v1.models import ModelEntry, ModelPlan
from services._runtime.settings_engines import Model
from services.router.control import audited
from services.router.control import model_params as p
from services.router.control.base import Done
from services.router.control.config_view import mask
from services.router.control.explain import explained
from services.router.control.orders import NO_WORKER, Orders
from services.router.control.params import NoParams
from services.router.control.parts import Parts
from services.router.domain.auth import Principal
from services.router.domain.models import DEMAND, KEEPER, Claim, Load, Register, Remove, Unload, standing
from services.router.domain.refusals import NotFound
from services.router.ports import ModelInfo


class ModelHandlers:
    """One method for each verb: ``(principal, params) -> Done``. All raise Refused."""

    def __init__(self, parts: Parts, orders: Orders) -> None:
        self._parts = parts
        self._orders = orders

    async def models(self, _who: Principal, _params: NoParams) -> Done:
        """Every model that a worker, a configuration or the registry knows."""
        return Done(p.ModelsShown(models=[self._shown(info) for info in self._parts.known_models()]))

    async def model(self, _who: Principal, params: p.ModelParams) -> Done:
        """One model with its workers; 404 for one that nobody knows."""
        info = next((info for info in self._parts.known_models() if info.name == params.name), None)
        if info is None:
            raise _unknown(params.name)
        beats = [beat for beat in self._parts.path().beats() if beat.model == params.name]
        rows = [_row(beat) for beat in sorted(beats, key=lambda beat: beat.worker)]
        return Done(p.ModelDetail(**dict(self._shown(info)), by_worker=rows), target=params.name)

    async def models_register(self, who: Principal, params: p.RegisterParams) -> Done:
        """409 for a name that there is, under a test, or when no worker can take it."""
        command = Register(params.name, params.spec(), _actor(who), params.replace, params.strategy)
        return await self._done(params.name, self._orders.have(command))

    async def models_load(self, who: Principal, params: p.LoadParams) -> Done:
        """404 for an unknown model, 409 when no worker can take it, or for `reload` under a test."""
        command = Load(params.name, _actor(who), anew=params.reload, strategy=params.strategy)
        return await self._done(params.name, self._orders.have(command))

    async def models_unload(self, who: Principal, params: p.ModelParams) -> Done:
        """404 for an unknown model, 409 under a test."""
        return await self._done(params.name, self._changed(Unload(params.name, _actor(who))))

    async def models_remove(self, who: Principal, params: p.ModelParams) -> Done:
        """404 for an unknown model, 409 under a test or for one that only a configuration has."""
        return await self._done(params.name, self._changed(Remove(params.name, _actor(who))))

    async def models_plan(self, _who: Principal, params: p.PlanParams) -> Done:
        """Every living worker's word; nothing is loaded. 404 for an unknown name, 422 naming the field."""
        specs = [self._spec(index, item) for index, item in enumerate(params.models)]
        plans = await self._orders.plan(specs)
        lacking = [said for spec in specs if (said := _lacking(spec, plans)) is not None]
        return Done(p.PlanShown(fits=not lacking, message="; ".join(lacking), workers=plans))

    # ------------------------------------------------------------------------------------------------------

    async def _changed(self, command: Unload | Remove) -> tuple[Claim, str]:
        return await self._orders.change(command), ""

    async def _done(self, name: str, order: Awaitable[tuple[Claim, str]]) -> Done:
        """The answer to an order, with the entry as the order found it and as it left it."""
        with audited.found(lambda: audited.of_model(standing(self._parts.models.entry(name)))):
            made, note = await order
        if made.entry is None:
            left = found = self._parts.models.entry(name)
        else:
            left, was = made.entry, made.entry.before
            found = None if was is None else ModelEntry.model_validate(was)
        return Done(
            p.ModelChanged(model=name, status=made.status, generation=made.generation, message=note), target=name,
            before=audited.of_model(found), after=audited.of_model(left) or {},
        )  # fmt: skip

    def _shown(self, info: ModelInfo) -> p.ModelShown:
        entry = self._parts.models.entry(info.name)
        tests = self._parts.experiments.live()
        return p.ModelShown(
            **asdict(info), entry=None if entry is None or entry.desired == "removed" else _entry(entry),
            in_use_by=[test.test_id for test in tests if info.name in {test.model_a, test.model_b}],
        )  # fmt: skip

    def _spec(self, index: int, item: dict[str, Any] | str) -> dict[str, Any]:
        if not isinstance(item, str):
            try:
                return Model.model_validate_json(json.dumps(item), strict=True).model_dump(
                    mode="json", exclude_unset=True
                )
            except ValidationError as exc:
                raise explained(exc, Model, f"models.{index}") from None
        entry = self._parts.models.entry(item)
        if entry is not None and entry.desired != "removed" and entry.spec is not None:
            return entry.spec
        if all(info.name != item for info in self._parts.known_models()):
            raise _unknown(item, f"models.{index}")
        return self._orders.configured(item)


def _unknown(name: str, param: str = "name") -> NotFound:
    return NotFound(
        f"model '{name}' is unknown: GET /v1/ab-testing/models lists the models", param=param, code="model_not_found"
    )


def _actor(who: Principal) -> str:
    """Who it was; a key named as one of the routers' own actors is told from them."""
    return f"key {who.name}" if who.name in {KEEPER, DEMAND} else who.name


def _entry(entry: ModelEntry) -> p.EntryShown:
    shown = entry.model_dump(include={*p.EntryShown.model_fields})
    return p.EntryShown(**{**shown, "spec": mask(entry.spec)})


def _row(beat: Heartbeat) -> p.ModelOnWorker:
    def known(figure: Any) -> Any:
        return None if figure < 0 else figure

    return p.ModelOnWorker(
        **{name: getattr(beat, name) for name in p.ModelOnWorker.model_fields}
        | {name: known(getattr(beat, name)) for name in _UNKNOWN}
    )


_UNKNOWN = ("progress", "engine_running", "engine_waiting", "kv_cache", "cpu", "gpu", "idle_s")
"""Negative where nobody knows them."""


def _lacking(spec: dict[str, Any], plans: list[ModelPlan]) -> str | None:
    """Why a model fits on no worker that it is for; None where it does on one."""
    name, pool = spec["name"], spec.get("pool")
    said = []
    for plan in plans:
        need = next((need for need in plan.needs if need.model == name), None)
        if need is None or pool not in {None, plan.pool}:
            continue
        if need.fits:
            return None
        said.append(f"{plan.worker}: {need.message}")
    return "; ".join(said) or f"model '{name}': {NO_WORKER}"
