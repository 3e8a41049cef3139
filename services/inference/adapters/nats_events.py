"""Tells the bus, durably, that a model changed its state."""

import asyncio

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.events import ModelState
from services._runtime.bus import TRANSIENT, Bus, publish_durable
from services._runtime.clock import now_ms
from services._runtime.telemetry import get_logger
from services.inference.adapters.models import ServedModel

log = get_logger(__name__)

_TYPE = "model.state"


class ModelEvents:
    """Publishes in order, in the background; a state that nobody could be told of is logged."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self._bus = bus
        self._worker = worker
        self._sent = 0
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._task = asyncio.create_task(self._run(), name="model-events")

    async def stop(self, limit_s: float = 1.0) -> None:
        """Publish what waits, for at most ``limit_s`` seconds, and end."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                await self._waiting.join()
        except TimeoutError:
            log.warning("model_events_lost", count=self._waiting.qsize())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def state_changed(self, model: ServedModel, seconds: float | None) -> None:
        """A model has a new state; ``seconds``: how long the step to it took."""
        at = now_ms()
        self._sent += 1
        event_id = f"{self._worker}.{self._sent}.model"
        data = ModelState(
            model=model.name, worker=self._worker, state=model.state.value, digest=model.digest, reason=model.reason,
            at_ms=at, seconds=seconds,
        )  # fmt: skip
        self._waiting.put_nowait((event_id, dump(envelope(_TYPE, event_id, "inference", at, data, model.name))))

    async def _run(self) -> None:
        while True:
            event_id, payload = await self._waiting.get()
            try:
                await publish_durable(self._bus.js, subjects.event(_TYPE), payload, {"Nats-Msg-Id": event_id})
            except TRANSIENT as exc:
                log.warning("model_event_failed", event_id=event_id, error=repr(exc))
            finally:
                self._waiting.task_done()
