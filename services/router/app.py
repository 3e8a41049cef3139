"""Wires the router together; nothing else does."""

import gc
from typing import Any

from faststream.asgi import AsgiFastStream
from faststream.nats import NatsBroker

from services._runtime.bus import Bus, make_broker
from services._runtime.health import AsgiApp, Readiness, Receive, Scope, Send, respond, routes
from services._runtime.provisioned import wait_until_provisioned
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services.router.adapters.nats_secrets import load_secrets
from services.router.control import Control, build_control
from services.router.domain.auth import KeyRing
from services.router.domain.errors import broken, refusal
from services.router.domain.refusals import Forbidden, Unavailable
from services.router.edge.gate import Gate
from services.router.edge.http import ModelsApp
from services.router.edge.path import InferencePath
from services.router.edge.protocol import EdgeProtocol
from services.router.edge.shield import Shielded
from services.router.handlers import BusEdge
from services.router.settings import SERVICE, read_keys

log = get_logger(__name__)

UVICORN_OPTIONS: dict[str, Any] = {
    "http": EdgeProtocol,
    "ws": "none",
    "interface": "asgi3",
    "proxy_headers": False,
    "timeout_keep_alive": 75,
}
"""How uvicorn must be run: the edge relies on its own protocol class."""

GC_THRESHOLD = (10_000, 20, 20)
"""Requests leave hardly any cycles behind, so the collector may look seldom; memory stays flat under load."""


class Router:
    """The parts of one process and their life cycle."""

    def __init__(self, settings: Settings, ring: KeyRing, broker: NatsBroker) -> None:
        self._settings = settings
        self._ring = ring
        self._broker = broker
        self.bus = Bus(settings, SERVICE)
        # Requests are never buffered while the bus is away: they would be answered to nobody.
        self.infer_bus = Bus(settings, SERVICE, pending_size=0)
        self.path: InferencePath | None = None
        self.control: Control | None = None
        self.models_app: ModelsApp | None = None
        self._bus_edge: BusEdge | None = None

    def readiness(self) -> Readiness:
        """What is missing before this process can serve."""
        readiness = Readiness()
        readiness.add("bus", lambda: self.bus.missing() or self.infer_bus.missing())
        readiness.add("experiments", lambda: "not started" if self.control is None else self.control.missing())
        readiness.add("models", lambda: "not started" if self.path is None else self.path.models_missing())
        return readiness

    async def start(self) -> None:
        """Begin everything; waits for the bus as long as it takes."""
        await self.bus.connect()
        await self.infer_bus.connect()
        await wait_until_provisioned(self.bus)
        secrets = await load_secrets(self.bus, self._settings)
        control = build_control(self._settings, self.bus, self._ring, root_salt=secrets.unit_salt)
        path = InferencePath(
            self._settings, bus=self.bus, infer_bus=self.infer_bus, control=control, secrets=secrets
        )
        control.attach(path)
        control.subscribe(self._broker)
        await control.start()
        if not len(self._ring):
            log.warning("no_api_keys", remedy="every request will be refused: name keys under security.api_keys")
        await path.start()
        self._bus_edge = BusEdge(self.bus, path.gate)
        await self._bus_edge.start()
        self.control, self.path, self.models_app = control, path, ModelsApp(path.gate)
        _settle()

    async def stop(self) -> None:
        """End everything; uvicorn has drained HTTP before. No fact is lost."""
        if self._bus_edge is not None:
            await self._bus_edge.stop()
        if self.path is not None:
            await self.path.stop()
        if self.control is not None:
            await self.control.stop()
        await self.infer_bus.close()
        await self.bus.close()


def _settle() -> None:
    """What start-up has built stays: a collector that walks it again and again is a tenth of a request's cost."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


class RouterApp(AsgiFastStream):
    """Inference to the edge, operations to the runtime, everything else to the control API."""

    def __init__(self, router: Router, broker: NatsBroker) -> None:
        operations: list[tuple[str, AsgiApp]] = routes(SERVICE, router.readiness())
        super().__init__(
            broker, asgi_routes=operations, logger=None, on_startup=[router.start], on_shutdown=[router.stop]
        )
        self._router = router
        self._operations = dict(operations)

    @property
    def gate(self) -> Gate | None:
        """Where `EdgeProtocol` takes requests to models; None until the router has started."""
        return self._router.models_app.gate if self._router.models_app is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one request, or the lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        shielded = Shielded(scope, receive, send)
        try:
            await self._serve(scope, shielded.receive, shielded)
        except Exception as exc:
            if shielded.begun:
                raise
            log.error("request_failed", path=ascii(scope["path"]), error=repr(exc))
            reply = broken()
            await respond(shielded, reply.status, reply.body)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        models_app, control = self._router.models_app, self._router.control
        if ModelsApp.serves(path) and models_app is not None:
            await models_app(scope, receive, send)
        elif path in self._operations:
            await self._operations[path](scope, receive, send)
        elif control is not None:
            if not await self._kept_out(scope, send):
                await control.app(scope, receive, send)
        else:
            reply = refusal(Unavailable("the router is starting: try again", retry_after_s=1))
            await respond(send, reply.status, reply.body)

    async def _kept_out(self, scope: Scope, send: Send) -> bool:
        """Refuse an address that `security.ip_allow` leaves out; models and their edge ask the gate themselves."""
        gate = self.gate
        try:
            if gate is not None:
                gate.address(scope["client"][0] if scope["client"] else "")
        except Forbidden as exc:
            reply = refusal(exc)
            await respond(send, reply.status, reply.body)
            return True
        return False


def build_app(settings: Settings) -> AsgiFastStream:
    """The service as an ASGI application; its lifespan starts and stops all parts.

    Raises ConfigError when a key cannot be read.
    """
    ring = read_keys(settings)
    broker = make_broker(settings, SERVICE)
    return RouterApp(Router(settings, ring, broker), broker)
