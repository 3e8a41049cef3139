"""The request path as one object: its parts, its clock, and what the control side may ask of it."""

import asyncio
import contextlib
import os
from collections.abc import Iterator

from prometheus_client import REGISTRY

from schemas.v1.control import FeedbackCommand
from schemas.v1.experiment import Experiment
from schemas.v1.inference import Heartbeat
from services._runtime.bus import Bus
from services._runtime.clock import monotonic, now_ms
from services._runtime.settings_model import Settings
from services._runtime.telemetry import get_logger
from services._runtime.tracing import build as build_traces
from services.router.adapters.facts import FactPublisher
from services.router.adapters.loads import Loads
from services.router.adapters.nats_alerts import AlertSink
from services.router.adapters.nats_heartbeats import hear_heartbeats
from services.router.adapters.nats_infer import InferClient
from services.router.adapters.nats_leases import hear_leases
from services.router.adapters.nats_secrets import Secrets
from services.router.adapters.workers import WorkerTable
from services.router.control import Control
from services.router.domain.capacity import Load
from services.router.domain.facts import Batcher
from services.router.domain.keys import ends_soon
from services.router.domain.models import standing
from services.router.edge.arms import Arms
from services.router.edge.feedback import FeedbackDesk
from services.router.edge.gate import Gate
from services.router.edge.meters import Figure, Meters
from services.router.edge.serve import Server
from services.router.edge.tracing import EdgeTraces
from services.router.ports import ModelInfo

log = get_logger(__name__)

TICK_S = 0.1


class InferencePath:
    """Implements `ports.RequestPath`. ``bus`` carries facts and alerts, ``infer_bus`` requests and frames."""

    def __init__(
        self, settings: Settings, *, bus: Bus, infer_bus: Bus, control: Control, secrets: Secrets
    ) -> None:
        self._settings = settings
        self._bus = bus
        self._infer_bus = infer_bus
        self._connected_since: float | None = None
        self._generation = 0
        self._served_once = False
        self._ticker: asyncio.Task[None] | None = None
        router_id = f"r{os.urandom(4).hex()}"
        configured = [model.name for model in settings.models]
        batcher = Batcher(f"{router_id}-{now_ms():x}")
        self.meters = Meters()
        self.alerts = AlertSink(bus)
        self.table = WorkerTable(configured)
        self._registry = control.models
        control.models.on_change(self.table.wanted)
        self.loads = Loads(self.table)
        self.client = InferClient(infer_bus, router_id, self.table.remove)
        self.table.on_lost = self.client.lost
        self.facts = FactPublisher(bus, batcher, settings.data_dir / "spool")
        self.arms = Arms(
            experiments=control.experiments, batcher=batcher, facts=self.facts, salts=control.parts.salts,
            erasures=control.parts.erasures, turn_salt=secrets.unit_salt, unit_order=settings.assignment.unit,
            enabled=settings.ab_testing.enabled, default_on_monitor_down=settings.policies.on_monitor_down,
            monitoring_active=lambda: control.monitoring.active, connected_for=self.connected_for,
            raise_alert=self.alerts.raise_alert, answered=self.loads.answered,
        )  # fmt: skip
        self._traces = build_traces("router", settings.telemetry.traces)
        self.server = Server(
            table=self.table, client=self.client, arms=self.arms, meters=self.meters,
            fallback=settings.policies.fallback_to_stable, want=control.keeper.want,
            traces=EdgeTraces(self._traces) if self._traces is not None else None,
        )  # fmt: skip
        self.desk = FeedbackDesk(secrets.signing_key, control.experiments, self.facts, control.parts.erasures)
        self.gate = Gate(
            door=control.door, limiter=control.limits.inference, arms=self.arms, server=self.server,
            meters=self.meters, signing_key=secrets.signing_key, max_body=self._max_body(),
            default_model=configured[0] if configured else None, ip_allow=settings.security.ip_allow,
            unit_sources=settings.assignment.unit, models=self.models,
            first_use=control.recorder.used_model,
        )  # fmt: skip
        for figure in figures(self, control):
            self.meters.figure(figure)

    async def start(self) -> None:
        """Hear workers and leases, send what a dead router left behind. Both connections must stand."""
        await self.client.start()
        await hear_heartbeats(self._infer_bus, self._heard)
        await hear_leases(self._infer_bus, lambda test, holder, n: self.arms.heard_lease(test, holder, n, monotonic()))
        await self.facts.start()
        self._connected_since = monotonic()
        self._generation = self._infer_bus.generation
        self._ticker = asyncio.create_task(self._tick(), name="request-path")
        REGISTRY.register(self.meters)

    async def stop(self) -> None:
        """Send the last facts; in-flight requests have been drained before."""
        REGISTRY.unregister(self.meters)
        if self._ticker:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        await self.client.stop()
        await self.facts.stop()
        await self.alerts.stop()
        if self._traces is not None:
            await self._traces.stop()

    def models(self) -> list[ModelInfo]:
        """Every model that a worker or the configuration knows."""
        return self.table.models()

    def beats(self) -> list[Heartbeat]:
        """The last heartbeat of every living worker of every model."""
        return self.table.beats()

    def load(self, model: str) -> Load:
        """What the model carries now and has shown that it can carry."""
        return self.loads.load(model, monotonic())

    def block(self, test_id: str) -> None:
        """Serve the canary of this test nothing from now on."""
        self.arms.block(test_id)

    def effective_share_bp(self, experiment: Experiment) -> int:
        """The share this router really applies now."""
        return self.arms.effective_share_bp(experiment)

    def in_flight(self, test_id: str) -> dict[str, int]:
        """Requests of a test that this router has in flight, by variant."""
        return self.arms.in_flight(test_id)

    async def flush_facts(self, timeout_s: float) -> dict[str, dict[int, int]]:
        """Publish every pending fact; the highest acknowledged batch number by router epoch and partition."""
        return await self.facts.flush(timeout_s)

    async def advance_facts(self, partition: int, timeout_s: float) -> bool:
        """Publish what waits of a partition and an empty batch behind it; whether METRICS has it in time."""
        return await self.facts.advance(partition, timeout_s)

    def erase(self, test_id: str, unit: int) -> None:
        """Requests of this unit in this test are nobody's from now on, those under way included."""
        self.arms.erase(test_id, unit)

    async def feedback(self, said: FeedbackCommand) -> str:
        """Record what a client says about a response; the test's id. Raises Refused."""
        return await self.desk.take(said)

    def degraded(self) -> list[str]:
        """``bus`` while a connection is away, ``facts`` while batches wait or were lost, ``unit_salt`` without one."""
        found = [] if self._bus.connected and self._infer_bus.connected else ["bus"]
        if self.facts.degraded():
            found.append("facts")
        if self.arms.unsalted():
            found.append("unit_salt")
        return found

    def models_missing(self) -> str | None:
        """For readiness: at first every preloaded model must be ready, later any one of them will do.

        A canary that dies must not take the router out of service, nor a model that is unloaded on purpose.
        """
        wanted = [model.name for model in self._settings.models if model.preload and not self._unloaded(model.name)]
        lacking = [name for name in wanted if self.table.choose(name) is None]
        if not lacking:
            self._served_once = True
            return None
        # What has failed to load is said where models are listed; those that are ready serve without it.
        failed = all(self.table.info(name).state == "failed" for name in lacking)
        if (self._served_once or failed) and len(lacking) < len(wanted):
            return None
        return f"no ready worker for: {', '.join(lacking)}"

    def _unloaded(self, name: str) -> bool:
        entry = standing(self._registry.entry(name))
        return entry is not None and entry.desired == "unloaded"

    def _heard(self, beat: Heartbeat) -> None:
        self.table.heard(beat, monotonic())

    def connected_for(self) -> float:
        """Seconds since when heartbeats can have been heard without a break."""
        return 0.0 if self._connected_since is None else monotonic() - self._connected_since

    def _max_body(self) -> int:
        # A request travels in one message; 64 KiB are left for its head.
        bus_limit = int(self._infer_bus.nc.max_payload) - (64 << 10)
        return min(self._settings.http.max_body_bytes, bus_limit)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._step(loop.time())
            except Exception:
                log.exception("tick_failed")
            await asyncio.sleep(TICK_S)

    def _step(self, loop_now: float) -> None:
        now = monotonic()
        bus = self._infer_bus
        if not bus.connected or bus.generation != self._generation:
            self._generation = bus.generation
            self._connected_since = None
            self.client.cut_off()
        if bus.connected:
            if self._connected_since is None:
                self._connected_since = now
                self.table.forgive(now)
                self.table.wake_all()
            self.table.sweep(now)
        self.loads.sample(now)
        self.arms.tick(now)
        self.client.tick(loop_now)


def figures(path: InferencePath, control: Control) -> Iterator[Figure]:
    """What `/metrics` shows of the path's and the control side's state."""
    table, arms, facts = path.table, path.arms, path.facts
    yield Figure("cypria_router_peers", "Routers that share the limits, this one included",
                 lambda: control.peers.routers)  # fmt: skip
    yield Figure("cypria_router_guessing_sources", "Addresses that sent too many wrong keys within a minute",
                 lambda: control.door.waiting(monotonic()))  # fmt: skip
    yield Figure("cypria_router_keys_expiring", "Good API keys that end by themselves soon",
                 lambda: sum(ends_soon(entry, now_ms()) for entry in control.parts.keys.entries()))  # fmt: skip
    yield Figure("cypria_router_open_breakers", "Tests whose canary this router keeps away", arms.open_breakers)
    yield Figure("cypria_router_unwatched_tests", "Tests whose lease has lapsed: no monitor watches the canary",
                 arms.unwatched)  # fmt: skip
    yield Figure("cypria_router_fact_batches_waiting", "Fact batches without a PubAck", lambda: facts.spooled()[0])
    yield Figure("cypria_router_spool_bytes", "Bytes of facts on the disk", lambda: facts.spooled()[1])
    yield Figure("cypria_router_facts_dropped", "Facts lost because the spool was full", lambda: facts.dropped,
                 counts=True)  # fmt: skip
    yield Figure("cypria_router_workers", "Workers that send heartbeats, once for each model that they have",
                 lambda: sum(info.workers for info in table.models()))  # fmt: skip
    yield Figure("cypria_router_ready_workers", "Workers that are ready to serve the model",
                 lambda: {info.name: info.ready_workers for info in table.models()}, label="model")  # fmt: skip
