"""Wires the inference service together; nothing else does."""

from collections.abc import Callable
from functools import partial
from typing import Any

from faststream.asgi import AsgiFastStream
from faststream.nats import NatsBroker, NatsMessage

from schemas import subjects
from services._runtime.bus import Bus, make_broker
from services._runtime.health import Readiness, routes
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services.inference import settings as own_settings
from services.inference.adapters.engines import make_engine
from services.inference.adapters.gauges import ModelGauges
from services.inference.adapters.models import Models, ServedModel
from services.inference.adapters.nats_events import ModelEvents
from services.inference.adapters.nats_worker import NatsWorker
from services.inference.handlers import ModelHandlers

log = get_logger(__name__)

SERVICE = "inference"


def build_app(settings: Settings) -> AsgiFastStream:
    """The service as an ASGI application; its lifespan starts and stops the worker."""
    own = own_settings.read(settings)
    bus = Bus(settings, SERVICE)
    broker = make_broker(settings, SERVICE)
    events = ModelEvents(bus, own.worker)

    def on_state(model: ServedModel, seconds: float | None) -> None:
        log.info("model_state", model=model.name, state=model.state.value, reason=model.reason, worker=own.worker)
        events.state_changed(model, seconds)
        worker.beat_soon()

    models = Models(own.models, own.sources, on_state, partial(make_engine, surroundings=own.surroundings))
    worker = NatsWorker(bus, models, own.worker)
    gauges = ModelGauges(models)
    _subscribe(broker, ModelHandlers(models, own.worker))
    readiness = Readiness()
    readiness.add("bus", bus.missing)
    readiness.add("models", models.missing)

    async def start() -> None:
        await bus.connect()
        events.start()
        await worker.start()
        gauges.register()
        models.preload()

    async def stop() -> None:
        models.begin_drain()
        await worker.stop(own.drain_s)
        await models.close()
        gauges.unregister()
        await events.stop()
        await bus.close()

    return AsgiFastStream(
        broker, asgi_routes=routes(SERVICE, readiness), logger=None, on_startup=[start], on_shutdown=[stop]
    )


def _subscribe(broker: NatsBroker, handlers: ModelHandlers) -> None:
    verbs: dict[str, Callable[[bytes], tuple[bytes, bool] | None]] = {
        "list": handlers.list, "load": handlers.load, "unload": handlers.unload,
    }  # fmt: skip
    for verb, handler in verbs.items():
        broker.subscriber(subjects.models(verb), no_reply=True)(_answering(broker, handler))


def _answering(broker: NatsBroker, handler: Callable[[bytes], tuple[bytes, bool] | None]) -> Callable[..., Any]:
    async def answer(message: NatsMessage) -> None:
        result = handler(message.body)
        if result is None or not message.reply_to:
            return
        reply, failed = result
        await broker.publish(reply, message.reply_to, headers={"Cypria-Error": "1"} if failed else None)

    return answer
