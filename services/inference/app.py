"""Wires the inference service together; nothing else does."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from faststream.asgi import AsgiFastStream
from faststream.nats import NatsBroker, NatsMessage

from schemas import subjects
from services._runtime.bus import Bus, make_broker
from services._runtime.health import Readiness, routes
from services._runtime.provisioned import wait_until_provisioned
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services._runtime.tracing import Traces
from services._runtime.tracing import build as build_traces
from services.inference import settings as own_settings
from services.inference.adapters.counts import count_try
from services.inference.adapters.engines import MakeEngine, make_engine
from services.inference.adapters.gauges import ModelGauges
from services.inference.adapters.kv_registry import Registry
from services.inference.adapters.loading import Loader
from services.inference.adapters.machine import Machine
from services.inference.adapters.models import Models
from services.inference.adapters.nats_events import ModelEvents
from services.inference.adapters.nats_worker import NatsWorker
from services.inference.adapters.planner import Planner, figures_of
from services.inference.adapters.registered import Rules
from services.inference.adapters.served import ServedModel
from services.inference.handlers import Answer, ModelHandlers
from services.inference.settings import InferenceSettings

log = get_logger(__name__)

SERVICE = "inference"


class Parts:
    """The parts of one worker, on a bus that is there already; ``start`` and ``stop`` in that order."""

    def __init__(
        self, bus: Bus, own: InferenceSettings, make: MakeEngine | None = None, traces: Traces | None = None
    ) -> None:
        self._own = own
        self._traces = traces
        self.machine = Machine()
        self.events = ModelEvents(bus, own.worker)
        self.planner = Planner(self.machine, own.management, figures_of(own.planning), worker=own.worker, pool=own.pool)
        self.loader = Loader(
            self._on_state, self.planner, own.sources, own.management.loading,
            make or partial(make_engine, surroundings=own.surroundings), on_try=count_try,
        )  # fmt: skip
        self.models = Models(own.models, self.loader, self._on_forgotten)
        self.worker = NatsWorker(
            bus, self.models, own.worker, pool=own.pool, machine=self.machine, events=self.events, traces=traces
        )
        rules = Rules(self.models.files, own.sources.allow, own.sources.remote_code)
        self.registry = Registry(bus, self.models, worker=own.worker, pool=own.pool, rules=rules)
        self.gauges = ModelGauges(self.models, self.machine)
        self.handlers = ModelHandlers(
            self.models, self.machine, self._plan, rules, worker=own.worker, pool=own.pool
        )

    async def start(self, *, preload: bool = True) -> None:
        """Serve what is there, and begin to load what is wanted."""
        self.machine.start()
        self.events.start()
        await self.worker.start()
        self.gauges.register()
        decided = await self.registry.start()
        if preload:
            self.models.preload(decided)

    async def stop(self) -> None:
        """Take no more, let what is in flight finish, and close every engine."""
        self.models.begin_drain()
        await self.registry.stop()
        await self.worker.stop(self._own.drain_s)
        await self.models.close()
        self.gauges.unregister()
        self.machine.stop()
        await self.events.stop()
        if self._traces is not None:
            await self._traces.stop()

    def _on_state(self, model: ServedModel, seconds: float | None) -> None:
        log.info(
            "model_state", model=model.name, state=model.state.value, reason=model.reason, worker=self._own.worker,
            generation=model.generation,
        )  # fmt: skip
        self.events.state_changed(model, seconds)
        self.worker.beat_soon()

    def _on_forgotten(self, name: str) -> None:
        self.worker.forget(name)

    async def _plan(self, configs: Any, loaded: dict[str, bool], refused: dict[str, str]) -> Any:
        return await asyncio.to_thread(self.planner.plan, configs, loaded, refused)


def build_app(settings: Settings) -> AsgiFastStream:
    """The service as an ASGI application; its lifespan starts and stops the worker."""
    own = own_settings.read(settings)
    bus = Bus(settings, SERVICE)
    broker = make_broker(settings, SERVICE)
    parts = Parts(bus, own, traces=build_traces(SERVICE, settings.telemetry.traces))
    _subscribe(broker, parts.handlers)
    readiness = Readiness()
    readiness.add("bus", bus.missing)
    readiness.add("models", parts.models.missing)

    async def start() -> None:
        await bus.connect()
        await wait_until_provisioned(bus)
        await parts.start()

    async def stop() -> None:
        await parts.stop()
        await bus.close()

    return AsgiFastStream(
        broker, asgi_routes=routes(SERVICE, readiness), logger=None, on_startup=[start], on_shutdown=[stop]
    )


def _subscribe(broker: NatsBroker, handlers: ModelHandlers) -> None:
    verbs: dict[str, Callable[[bytes], Awaitable[Answer]]] = {
        "list": handlers.list, "load": handlers.load, "unload": handlers.unload, "plan": handlers.plan,
    }  # fmt: skip
    for verb, handler in verbs.items():
        broker.subscriber(subjects.models(verb), no_reply=True)(_answering(broker, handler))


def _answering(broker: NatsBroker, handler: Callable[[bytes], Awaitable[Answer]]) -> Callable[..., Any]:
    async def answer(message: NatsMessage) -> None:
        result = await handler(message.body)
        if result is None or not message.reply_to:
            return
        reply, failed = result
        await broker.publish(reply, message.reply_to, headers={"Cypria-Error": "1"} if failed else None)

    return answer
