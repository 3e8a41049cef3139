"""Wires the monitor together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from faststream.asgi import AsgiFastStream

from services._runtime import health
from services._runtime.bus import Bus, make_broker
from services._runtime.provisioned import wait_until_provisioned
from services._runtime.settings_model import Settings
from services.monitor import handlers
from services.monitor.records import Records
from services.monitor.settings import monitor_settings
from services.monitor.watcher import Watcher

SERVICE = "monitor"


def build_app(settings: Settings) -> AsgiFastStream:
    """The monitor as an ASGI application; it connects when its lifespan begins."""
    readiness = health.Readiness()
    readiness.add("bus", lambda: "not connected to NATS yet")
    broker = make_broker(settings, SERVICE)
    bus = Bus(settings, SERVICE)
    own = monitor_settings(settings)
    watcher = Watcher(bus, own)
    records = Records(bus, watcher.experiments, own.clock_skew_s)
    handlers.register(broker, watcher, records)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await bus.connect()
        await wait_until_provisioned(bus)
        readiness.add("bus", bus.missing)
        readiness.add("windows", watcher.missing)
        await watcher.start()
        try:
            yield
        finally:
            await records.stop()
            await watcher.stop()
            await bus.close()

    async def answering() -> None:
        readiness.add("questions", lambda: None)

    readiness.add("questions", lambda: "questions about verdicts are not answered yet")
    return AsgiFastStream(
        broker, lifespan=lifespan, after_startup=[answering], asgi_routes=health.routes(SERVICE, readiness)
    )
