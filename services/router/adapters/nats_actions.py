"""Decisions of the monitor short of a rollback: every router hears each, compare-and-set lets one carry it out."""

import asyncio
from collections.abc import Callable

from nats.aio.msg import Msg
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import ActionRequested
from services._runtime.bus import Bus
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.dead_letters import bury
from services.router.adapters.nats_experiments import NatsExperiments
from services.router.domain.commands import Advance, Hold, Retry, StepDown
from services.router.domain.refusals import NotFound, Refused

log = get_logger(__name__)

_COMMANDS: dict[str, type[Advance | Hold | StepDown | Retry]] = {
    "advance": Advance, "pause": Hold, "step_down": StepDown, "retry": Retry,
}  # fmt: skip
_RETRY_S = 0.5

_Key = tuple[str, str, int]


class Actions:
    """Takes `cypria.event.verdict.action` (no queue group); ``changed`` is called with the ``model_a`` of what it took.

    An action is good for one version of the test, so hearing it twice, or too late, does nothing.
    """

    def __init__(self, bus: Bus, experiments: NatsExperiments, changed: Callable[[str], None]) -> None:
        self._bus = bus
        self._experiments = experiments
        self._changed = changed
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Begin to listen; nats-py subscribes again by itself after a reconnect."""
        await self._bus.nc.subscribe(subjects.event("verdict.action"), cb=self._received)

    async def stop(self) -> None:
        """Give up what is under way: another router takes it, or the monitor's next word."""
        await end(*self._tasks.values())

    async def _received(self, msg: Msg) -> None:
        try:
            asked = CloudEvent[ActionRequested].model_validate_json(msg.data).data
        except ValidationError as exc:
            await bury(self._bus, msg, "an action on a test", exc)
            return
        key = (asked.test_id, asked.action, asked.order.decided_on)
        if key in self._tasks:
            return
        task = asyncio.create_task(self._until_taken(asked), name=f"{asked.action}-{asked.test_id}")
        self._tasks[key] = task
        task.add_done_callback(lambda _task: self._tasks.pop(key, None))

    async def _until_taken(self, asked: ActionRequested) -> None:
        command = _COMMANDS[asked.action](asked.test_id, asked.order)
        while not self._stale(asked):
            try:
                await self._experiments.change(asked.model_a, lambda _state: command)
                self._changed(asked.model_a)
                return
            except NotFound:
                return  # the test has ended
            except Refused as exc:
                log.warning("action_not_written", test_id=asked.test_id, action=asked.action, error=exc.message)
            except ValidationError:
                log.exception("action_entry_unreadable", test_id=asked.test_id)
                return
            await asyncio.sleep(_RETRY_S)

    def _stale(self, asked: ActionRequested) -> bool:
        test = self._experiments.by_id(asked.test_id)
        return test is not None and test.version > asked.order.decided_on
