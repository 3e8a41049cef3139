"""Rollback orders: every router takes each of them itself, blocks the canary first and then writes it down."""

import asyncio
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.cloudevent import CONTENT_TYPE, CloudEvent, dump, envelope
from schemas.v1.events import RollbackRequested
from schemas.v1.experiment import Experiment, RollbackOrder
from services._runtime.bus import Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.dead_letters import bury
from services.router.adapters.nats_experiments import NatsExperiments
from services.router.domain.commands import Rollback
from services.router.domain.refusals import NotFound, Refused

log = get_logger(__name__)

OnRolledBack = Callable[[Experiment], None]
_RETRY_S = 0.5


class Rollbacks:
    """Takes orders from `cypria.rollback.*` (every router, no queue group), the breaker and operators.

    ``block`` is called before anything else; ``rolled_back`` with the entry that this router has written.
    """

    def __init__(
        self, bus: Bus, experiments: NatsExperiments, block: Callable[[str], None], rolled_back: OnRolledBack
    ) -> None:
        self._bus = bus
        self._experiments = experiments
        self._block = block
        self._rolled_back = rolled_back
        self._orders: dict[str, asyncio.Task[None]] = {}
        self._announcing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to listen; nats-py subscribes again by itself after a reconnect."""
        await self._bus.nc.subscribe(subjects.ROLLBACK, cb=self._received)

    async def stop(self) -> None:
        """Give up what is under way: another router, or this one after a restart, takes the repeated order."""
        await end(*self._orders.values(), *self._announcing)

    def request(self, test_id: str, order: RollbackOrder) -> None:
        """An order of this router's own; returns at once, tries until the test has ended."""
        self._block(test_id)
        test = self._experiments.by_id(test_id)
        if test is not None and test.live:
            self._announce(test, order)
            self._pursue(test_id, test.model_a, order)

    async def carry_out(self, test: Experiment, order: RollbackOrder) -> Experiment:
        """An operator's order: block here, tell every router, write it down; the entry afterwards.

        Raises NotFound when the test has ended otherwise, Unavailable when the bus does not take it.
        """
        self._block(test.test_id)
        self._announce(test, order)
        return await self._write(test.test_id, test.model_a, order)

    async def _received(self, msg: Msg) -> None:
        try:
            event = CloudEvent[RollbackRequested].model_validate_json(msg.data)
        except ValidationError as exc:
            await bury(self._bus, msg, "a rollback order", exc)
            return
        asked = event.data
        self._block(asked.test_id)
        self._pursue(asked.test_id, asked.model_a, asked.order)

    def _pursue(self, test_id: str, model_a: str, order: RollbackOrder) -> None:
        if test_id in self._orders:
            return
        task = asyncio.create_task(self._until_written(test_id, model_a, order), name=f"rollback-{test_id}")
        self._orders[test_id] = task
        task.add_done_callback(lambda _task: self._orders.pop(test_id, None))

    async def _until_written(self, test_id: str, model_a: str, order: RollbackOrder) -> None:
        while True:
            try:
                await self._write(test_id, model_a, order)
                return
            except NotFound:
                return  # ended already, by another router most of the time
            except Refused as exc:
                log.warning("rollback_not_written", test_id=test_id, error=exc.message)
            except ValidationError:
                log.exception("rollback_entry_unreadable", test_id=test_id)
            await asyncio.sleep(_RETRY_S)

    async def _write(self, test_id: str, model_a: str, order: RollbackOrder) -> Experiment:
        entry = await self._experiments.change(model_a, lambda _state: Rollback(test_id, order))
        self._rolled_back(entry)
        return entry

    def _announce(self, test: Experiment, order: RollbackOrder) -> None:
        task = asyncio.create_task(self._publish(test, order), name=f"announce-{test.test_id}")
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _publish(self, test: Experiment, order: RollbackOrder) -> None:
        # The rule is part of the id: two routers whose breakers agree announce one and the same order.
        event_id = f"{test.test_id}.{test.version}.rollback.{order.rule}"
        asked = RollbackRequested(test_id=test.test_id, model_a=test.model_a, order=order)
        payload = dump(envelope("rollback.requested", event_id, "router", now_ms(), asked, test.test_id))
        headers = {"Nats-Msg-Id": event_id, "content-type": CONTENT_TYPE}
        try:
            await publish_durable(self._bus.js, subjects.rollback(test.test_id), payload, headers)
        except (NatsError, TimeoutError, OSError) as exc:
            log.warning("rollback_not_announced", test_id=test.test_id, error=repr(exc))
