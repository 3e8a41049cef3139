"""Tells the bus, durably, that a model changed its state, and how far it has come."""

import asyncio
from collections.abc import Iterable

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.events import ModelProgress, ModelState
from services._runtime.bus import TRANSIENT, Bus, publish_durable
from services._runtime.clock import monotonic, now_ms
from services._runtime.telemetry import get_logger
from services.inference.adapters.served import ServedModel
from services.inference.domain.lifecycle import ON_THE_WAY

log = get_logger(__name__)

_STATE = "model.state"
_PROGRESS = "model.progress"
_EVERY_S = 2.0
_STEP = 0.1


class ModelEvents:
    """Publishes in order, in the background; a state that nobody could be told of is logged."""

    def __init__(self, bus: Bus, worker: str) -> None:
        self._bus = bus
        self._worker = worker
        self._sent = 0
        self._told: dict[ServedModel, tuple[float, str, float]] = {}
        self._waiting: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue()
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
        self._told.pop(model, None)
        data = ModelState(
            model=model.name, worker=self._worker, state=model.state.value, digest=model.digest, reason=model.reason,
            at_ms=now_ms(), seconds=seconds, generation=model.generation,
        )  # fmt: skip
        self._put(_STATE, model.name, data)

    def progressed(self, models: Iterable[ServedModel]) -> None:
        """Tell of those that are on their way and have come further: every 10 %, or every 2 s if something changed."""
        now, told = monotonic(), {}
        for model in models:
            if model.state not in ON_THE_WAY:
                continue
            at, doing, fraction = self._told.get(model, (now, "", 0.0))
            changed = (model.doing, model.progress) != (doing, fraction)
            if changed and (now - at >= _EVERY_S or model.progress - fraction >= _STEP):
                at, doing, fraction = now, model.doing, model.progress
                data = ModelProgress(
                    model=model.name, worker=self._worker, state=model.state.value, generation=model.generation,
                    fraction=fraction, detail=doing, at_ms=now_ms(),
                )  # fmt: skip
                self._put(_PROGRESS, model.name, data)
            told[model] = (at, doing, fraction)
        self._told = told

    def _put(self, type_: str, name: str, data: ModelState | ModelProgress) -> None:
        self._sent += 1
        event_id = f"{self._worker}.{self._sent}.model"
        payload = dump(envelope(type_, event_id, "inference", data.at_ms, data, name))
        self._waiting.put_nowait((type_, event_id, payload))

    async def _run(self) -> None:
        while True:
            type_, event_id, payload = await self._waiting.get()
            try:
                await publish_durable(self._bus.js, subjects.event(type_), payload, {"Nats-Msg-Id": event_id})
            except TRANSIENT as exc:
                log.warning("model_event_failed", event_id=event_id, error=repr(exc))
            finally:
                self._waiting.task_done()
