"""Carry out commands: decode, ask the domain, write. No policy here."""

import asyncio
import contextlib
import secrets
from collections import Counter
from dataclasses import replace
from typing import Any

from schemas.v1 import control as c
from schemas.v1 import query as q
from schemas.v1.common import TestStatus
from schemas.v1.experiment import Experiment, RollbackOrder
from schemas.v1.models import ModelEntry
from services._runtime.clock import monotonic, now_ms
from services._runtime.settings_model import Settings
from services.router.control import audited
from services.router.control.base import Done
from services.router.control.lifecycle import Lifecycle
from services.router.control.params import IntegrationParams, NoParams, RedriveParams
from services.router.control.parts import Parts
from services.router.control.records import Records
from services.router.domain import commands
from services.router.domain.auth import Principal
from services.router.domain.experiment import new_test_id
from services.router.domain.models import may_start, still
from services.router.domain.refusals import NotFound, Refused, Unavailable
from services.router.domain.shares import share_bp
from services.router.domain.starting import StartDefaults, future_ms, resolve

OPERATOR_RULE = "operator"
CLAIM_S = 3.0
"""How long a start waits for a change of its models that has been claimed and not yet confirmed."""


class Handlers(Records):
    """One method for each verb: ``(principal, params) -> Done``. All raise Refused."""

    def __init__(self, parts: Parts, lifecycle: Lifecycle) -> None:
        super().__init__(parts)
        self._lifecycle = lifecycle

    async def start(self, who: Principal, params: c.StartRequest) -> Done:
        """409 when one runs on that model_a or a model is being changed, 404 for an unknown model, 400 for the same
        model twice, 422.
        """
        now = now_ms()
        names = {"model_a": params.model_a, "model_b": params.model_b}
        entries = {param: await self._parts.models.fresh(name) for param, name in names.items()}
        monitoring = self._parts.monitoring.state
        command = resolve(
            params,
            defaults(self._parts.settings, monitoring.check_interval_seconds),
            {model.name: model.digest for model in self._parts.known_models()},
            test_id=new_test_id(now, secrets.token_bytes(4)),
            salt=secrets.token_hex(16),
            actor=who.name,
            now_ms=now,
        )
        for param, name in names.items():
            may_start(param, name, entries[param])
        test = await self._begin(command)
        # Whoever changes a model looks for tests after writing that down, so one of the two sees the other.
        try:
            for param, name in names.items():
                still(param, name, entries[param], await self._undecided(name))
        except Refused as exc:
            with contextlib.suppress(NotFound):  # stopped in the meantime
                await self._change(test.model_a, commands.Fail(test.test_id, exc.message, who.name))
            raise
        status = "scheduled" if test.status is TestStatus.SCHEDULED else "started"
        reply = c.StartReply(test_id=test.test_id, status=status)
        return Done(reply, test.test_id, params.model_a, after=audited.of_start(test))

    async def stop(self, who: Principal, params: c.StopCommand) -> Done:
        """The result; 404 when nothing runs."""
        test = self._target(params.test_id)
        before = audited.of_test(test)
        with audited.found(lambda: before):
            why = f"stopped by {who.name}" + (f": {params.reason}" if params.reason else "")
            result = await self._lifecycle.stop_test(test, why, who.name)
        (result,) = await self._with_totals([result])
        return Done(result, test.test_id, test.model_a, before=before, after=audited.of_result(result))

    async def rollback(self, who: Principal, params: c.RollbackCommand) -> Done:
        """Immediate: blocked everywhere before it is written. Gradual: in steps that A can take. With `at`: later."""
        now = now_ms()
        at_ms = None if params.at is None else future_ms(params.at, "at", now)
        test = self._target(params.test_id)
        order = RollbackOrder(
            rule=OPERATOR_RULE,
            reason=params.reason or f"rolled back by {who.name}",
            actor=who.name,
            at_ms=now,
            decided_on=test.version,
        )
        if at_ms is not None:
            planned = commands.ScheduleRollback(test.test_id, order, at_ms, params.speed)
            test, before = await self._change(test.model_a, planned)
            return _changed(test, before, {"status": "scheduled", "test_id": test.test_id})
        if params.speed == "gradual":
            return _changed(*await self._change(test.model_a, commands.BeginRollback(test.test_id, order)))
        before = audited.of_test(test)
        try:
            with audited.found(lambda: before):
                test = await self._parts.rollbacks.carry_out(test, order)
        except NotFound:
            # Another router or rule took the canary out in the meantime: what was asked for has happened.
            found = self._parts.experiments.by_id(test.test_id)
            if found is None or found.rollback is None:
                raise
            test = found
        return _changed(test, before)

    async def traffic_split(self, who: Principal, params: c.SplitCommand) -> Done:
        """Units only move from A to B when the share grows, and back, last first, when it shrinks."""
        share = share_bp(params.traffic_split_percent)
        test = self._target(params.test_id)
        test, before = await self._change(test.model_a, commands.ChangeSplit(test.test_id, share, who.name))
        body = {"status": "updated", "traffic_split_percent": test.share_bp / 100, "test_id": test.test_id}
        return _changed(test, before, body)

    async def pause(self, who: Principal, params: c.TestRef) -> Done:
        """Hold the split; 409 unless running."""
        test = self._target(params.test_id)
        return _changed(*await self._change(test.model_a, commands.Pause(test.test_id, who.name)))

    async def resume(self, who: Principal, params: c.TestRef) -> Done:
        """End a pause; 409 unless paused."""
        test = self._target(params.test_id)
        return _changed(*await self._change(test.model_a, commands.Resume(test.test_id, who.name)))

    async def approve(self, who: Principal, params: c.TestRef) -> Done:
        """Open the manual gate of the ramp's present step; 409 when it has none that is shut."""
        test = self._target(params.test_id)
        test, before = await self._change(test.model_a, commands.Approve(test.test_id, who.name))
        return _changed(test, before, {"status": "approved", "test_id": test.test_id})

    async def monitoring_start(self, who: Principal, params: c.MonitoringCommand) -> Done:
        """Let verdicts act, from now on."""
        return await self._switch(who, params, active=True)

    async def monitoring_stop(self, who: Principal, params: c.MonitoringCommand) -> Done:
        """Verdicts only alert, from now on."""
        return await self._switch(who, params, active=False)

    async def feedback(self, _who: Principal, params: c.FeedbackCommand) -> Done:
        """400 for a bad token, 422 when nothing is said, 409 when the test has ended, 503 when it is not stored yet."""
        return Done(c.FeedbackReply(), await self._parts.path().feedback(params))

    async def alerts_test(self, _who: Principal, _params: NoParams) -> Done:
        """A test alert to every destination, with what became of each."""
        reply = await self._parts.queries.alerts_test()
        return Done(reply, after=_tally(reply.destinations))

    async def alerts_redrive(self, _who: Principal, params: RedriveParams) -> Done:
        """404 for an unknown destination."""
        reply = await self._parts.queries.alerts_redrive(q.RedriveQuery(destination=params.destination))
        return Done(reply, target=params.destination, after=_redriven(reply))

    async def integrations_test(self, _who: Principal, params: IntegrationParams) -> Done:
        """404 for an unknown integration."""
        query = q.IntegrationQuery(integration=params.integration)
        reply = await self._parts.queries.integrations_test(query)
        return Done(reply, target=params.integration, after=_tally(reply.integrations))

    async def integrations_redrive(self, _who: Principal, params: IntegrationParams) -> Done:
        """404 for an unknown integration."""
        query = q.IntegrationQuery(integration=params.integration)
        reply = await self._parts.queries.integrations_redrive(query)
        return Done(reply, target=params.integration, after=_redriven(reply))

    # ------------------------------------------------------------------------------------------------------

    async def _begin(self, start: commands.Start) -> Experiment:
        """Write the test's entry. Its salt is stored before: whoever sees the entry can hash units for it."""
        salted = replace(start, unit_salt_version=await self._parts.salts.make(start.test_id))
        try:
            test, _ = await self._change(start.model_a, salted)
        except Unavailable:
            raise  # it may have been written all the same: what turns out to have no test is destroyed later
        except Refused:
            with contextlib.suppress(Unavailable):
                await self._parts.salts.destroy(salted.unit_salt_version)
            raise
        return test

    async def _undecided(self, name: str) -> ModelEntry | None:
        """The entry past every copy; a claim on it is given time to be confirmed or taken back."""
        end = monotonic() + CLAIM_S
        while True:
            entry = await self._parts.models.fresh(name)
            if entry is None or entry.stage != "claimed" or monotonic() > end:
                return entry
            await asyncio.sleep(0.05)

    async def _change(self, model_a: str, command: commands.Command) -> tuple[Experiment, audited.Shown | None]:
        """The entry as it stands now, and what the audit shows of the live test that the command found there."""
        seen: Experiment | None = None

        def on(state: Experiment | None) -> commands.Command:
            nonlocal seen
            seen = state if state is not None and state.live else None
            return command

        with audited.found(lambda: audited.of_test(seen)):
            changed = await self._parts.experiments.change(model_a, on)
        self._parts.outbox.kick(model_a)
        return changed, audited.of_test(seen)

    async def _switch(self, who: Principal, params: c.MonitoringCommand, *, active: bool) -> Done:
        was = audited.of_monitoring(self._parts.monitoring.state)
        with audited.found(lambda: was):
            state = await self._parts.monitoring.switch(
                active=active, check_interval_seconds=params.check_interval_seconds, actor=who.name
            )
        body = {
            "status": "started" if active else "stopped",
            "monitoring_active": state.active,
            "check_interval_seconds": state.check_interval_seconds,
        }
        return Done(body, target="monitoring", before=was, after=audited.of_monitoring(state))


def _tally(tried: list[dict[str, Any]]) -> audited.Shown:
    """How many destinations or integrations came to which outcome."""
    return dict(Counter(str(one.get("outcome")) for one in tried))


def _redriven(reply: q.RedriveReply) -> audited.Shown:
    return {"redriven": reply.redriven, "skipped": len(reply.skipped)}


def _changed(test: Experiment, before: audited.Shown | None, body: dict[str, Any] | None = None) -> Done:
    """What is answered to a command on a test; its status where nothing else is said."""
    said = {"status": test.status.value, "test_id": test.test_id} if body is None else body
    return Done(said, test.test_id, test.model_a, before=before, after=audited.of_test(test))


def defaults(settings: Settings, check_interval_seconds: float) -> StartDefaults:
    """What the configuration says about tests, as the domain wants it."""
    ab = settings.ab_testing
    named = {f"success_criteria.{name}" for name in ab.success_criteria.model_fields_set}
    named |= {f"failure_criteria.{name}" for name in ab.failure_criteria.model_fields_set}
    named |= {f"thresholds.{name}" for name in settings.monitoring.thresholds.model_fields_set}
    return StartDefaults(
        enabled=ab.enabled,
        split_percent=ab.default_traffic_split_percent,
        max_duration_minutes=ab.max_test_duration_minutes,
        success_criteria=ab.success_criteria,
        failure_criteria=ab.failure_criteria,
        thresholds=settings.monitoring.thresholds,
        configured=frozenset(named),
        policies=settings.policies.model_dump(mode="json"),
        check_interval_seconds=check_interval_seconds,
    )
