"""The router's part of a rollout on a real bus: its rules, its entry in the bucket, its events."""

from typing import Any

from schemas import subjects
from schemas.v1.cloudevent import CloudEvent, dump, envelope
from schemas.v1.events import ActionRequested, RollbackRequested, TestEvent
from schemas.v1.experiment import Experiment
from services._runtime.clock import now_ms
from services.router.domain.commands import Descend, Rollback
from services.router.domain.descending import under_way, wanted_bp
from services.router.domain.experiment import apply
from tests.service.monitor.rig import Rig
from tests.unit.monitor.rollout import COMMANDS


class RouterSide:
    """Carries out what the monitor asks for, and notes all that was asked."""

    def __init__(self, bench: Rig, test: Experiment) -> None:
        self.bench = bench
        self.test = test
        self.asked: list[CloudEvent[ActionRequested]] = []
        self.deaf = False

    async def start(self) -> None:
        await self.bench.put(self.test)
        await self._started()
        await self.bench.router.subscribe(subjects.event("verdict.action"), cb=self._on_action)
        await self.bench.router.subscribe(subjects.ROLLBACK, cb=self._on_rollback)
        await self.bench.router.flush()

    async def command(self, command: Any) -> None:
        state, events = apply(self.test, command, now_ms())
        if state is self.test:
            return
        self.test = state.model_copy(update={"outbox": []})
        await self.bench.put(self.test)
        for event in events:
            data = TestEvent.model_validate(event.data)
            body = dump(envelope(event.type, event.id, "router", event.at_ms, data, data.test_id))
            await self.bench.router.jetstream().publish(event.subject, body, headers={"Nats-Msg-Id": event.id})
        descent = under_way(self.test)
        if descent is not None:
            await self.command(Descend(self.test.test_id, self.test.version, wanted_bp(self.test, descent)))

    async def _started(self) -> None:
        test = self.test
        event = TestEvent(
            test_id=test.test_id, version=test.version, status=test.status, model_a=test.model_a, model_b=test.model_b,
            share_bp=test.share_bp, actor="ops", at_ms=now_ms(), configuration=test.configuration,
        )  # fmt: skip
        body = dump(envelope("test.started", f"{test.test_id}.0.1", "router", event.at_ms, event, test.test_id))
        await self.bench.router.jetstream().publish(subjects.event("test.started"), body)

    async def _on_action(self, message: Any) -> None:
        event = CloudEvent[ActionRequested].model_validate_json(message.data)
        self.asked.append(event)
        if not self.deaf and self.test.live:
            await self.command(COMMANDS[event.data.action](event.data.test_id, order=event.data.order))

    async def _on_rollback(self, message: Any) -> None:
        order = CloudEvent[RollbackRequested].model_validate_json(message.data).data.order
        if not self.deaf and self.test.live:
            await self.command(Rollback(self.test.test_id, order=order))
