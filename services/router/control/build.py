"""Puts the control side together."""

from dataclasses import dataclass

from fastapi import FastAPI
from faststream.nats import NatsBroker

from schemas.v1.control import MonitoringState
from schemas.v1.experiment import Experiment, RollbackOrder
from services._runtime.bus import Bus
from services._runtime.settings_model import Settings
from services.router.adapters.nats_actions import Actions
from services.router.adapters.nats_audit import AuditLog
from services.router.adapters.nats_erasures import NatsErasures
from services.router.adapters.nats_experiments import NatsExperiments
from services.router.adapters.nats_feed import Feed
from services.router.adapters.nats_keys import NatsKeys
from services.router.adapters.nats_models import NatsModels
from services.router.adapters.nats_monitoring import NatsMonitoring
from services.router.adapters.nats_notices import Notices
from services.router.adapters.nats_outbox import Outbox
from services.router.adapters.nats_peers import NatsPeers
from services.router.adapters.nats_plans import NatsPlans
from services.router.adapters.nats_queries import Queries
from services.router.adapters.nats_rollbacks import Rollbacks
from services.router.adapters.nats_salts import UnitSalts
from services.router.control import bus as control_bus
from services.router.control.accounts import Accounts
from services.router.control.descents import STEP_S
from services.router.control.dispatch import Dispatcher
from services.router.control.expiring import Expiring
from services.router.control.forgetting import LOOK_S, Forgetter
from services.router.control.handlers import Handlers
from services.router.control.http import build_app
from services.router.control.keeper import Keeper
from services.router.control.keys import KeyHandlers
from services.router.control.lifecycle import Lifecycle
from services.router.control.live import Live
from services.router.control.models import ModelHandlers
from services.router.control.orders import Orders
from services.router.control.parts import Late, Parts
from services.router.control.recorder import Recorder
from services.router.control.units import UnitHandlers
from services.router.domain.auth import KeyRing
from services.router.domain.door import Door
from services.router.domain.ratelimit import Limits, RateLimiter
from services.router.ports import RequestPath

DAY_MS = 86_400_000


class RoutedExperiments(NatsExperiments):
    """`ports.Experiments`, whole: reads from memory, and rollback orders of the request path."""

    rollbacks: Rollbacks

    def request_rollback(self, test_id: str, order: RollbackOrder) -> None:
        """Roll back for the breaker or a lapsed lease; returns at once and tries until the test has ended."""
        self.rollbacks.request(test_id, order)


@dataclass(slots=True)
class Control:
    """The control side: ``experiments``, ``models`` and ``keeper`` for the request path, ``app`` for HTTP."""

    experiments: RoutedExperiments
    app: FastAPI
    dispatcher: Dispatcher
    recorder: Recorder
    parts: Parts
    lifecycle: Lifecycle
    actions: Actions
    keeper: Keeper
    forgetter: Forgetter
    expiring: Expiring
    max_body: int
    door: Door
    limits: Limits
    peers: NatsPeers
    live: Live

    @property
    def models(self) -> NatsModels:
        """The registry."""
        return self.parts.models

    @property
    def monitoring(self) -> MonitoringState:
        """Whether verdicts act, and how often the monitor checks; for `on_monitor_down`."""
        return self.parts.monitoring.state

    def attach(self, path: RequestPath) -> None:
        """Say where the request path is."""
        self.parts.path.value = path

    def subscribe(self, broker: NatsBroker) -> None:
        """Answer `cypria.control.<verb>`; before the broker starts."""
        control_bus.subscribe(broker, self.dispatcher, self.max_body)

    def missing(self) -> str | None:
        """For readiness checks."""
        parts = self.parts
        kept = (parts.salts, parts.erasures, self.experiments, self.models, parts.keys)
        return next((lacking for one in kept if (lacking := one.missing())), None)

    async def start(self) -> None:
        """Read the state and begin to act on it. Raises TimeoutError when the bus does not answer in time."""
        self.parts.path()
        await self.parts.keys.start()
        await self.peers.start()
        await self.parts.salts.start()
        await self.parts.erasures.start()
        await self.experiments.start()
        await self.models.start()
        await self.parts.monitoring.start()
        await self.parts.rollbacks.start()
        await self.actions.start()
        self.parts.outbox.start()
        self.parts.audit.start()
        self.lifecycle.start()
        self.keeper.start()
        self.forgetter.start()
        self.expiring.start()

    async def stop(self) -> None:
        """End event streams, timers and watches; publish what waits."""
        await self.parts.feed.stop()
        await self.live.stop()
        await self.parts.shared.stop()
        await self.peers.stop()
        await self.expiring.stop()
        await self.forgetter.stop()
        await self.keeper.stop()
        await self.lifecycle.stop()
        await self.actions.stop()
        await self.parts.rollbacks.stop()
        await self.parts.outbox.stop()
        await self.recorder.stop()
        await self.parts.audit.stop()
        await self.parts.monitoring.stop()
        await self.models.stop()
        await self.experiments.stop()
        await self.parts.keys.stop()
        await self.parts.erasures.stop()
        await self.parts.salts.stop()


def build_control(
    settings: Settings, bus: Bus, ring: KeyRing, *, root_salt: bytes, step_s: float = STEP_S, forget_s: float = LOOK_S
) -> Control:
    """The control side on a connected (or yet to be connected) bus.

    ``root_salt`` is the same on every router: the salts of units are hashed under it, and callers' addresses in audit
    records. ``step_s`` is the time between the steps of a gradual rollback or a step down, ``forget_s`` between looks
    for what must go.
    """
    experiments = RoutedExperiments(bus)
    salts = UnitSalts(bus, root_salt)
    experiments.on_change(salts.expect)
    late = Late()
    outbox = Outbox(bus, experiments, "outbox")

    def block(test_id: str) -> None:
        late().block(test_id)

    def rolled_back(entry: Experiment) -> None:
        outbox.kick(entry.model_a)

    rollbacks = Rollbacks(bus, experiments, block, rolled_back)
    experiments.rollbacks = rollbacks
    monitoring = MonitoringState(
        active=settings.monitoring.enabled, check_interval_seconds=settings.monitoring.check_interval_seconds
    )
    parts = Parts(
        settings=settings,
        experiments=experiments,
        outbox=outbox,
        rollbacks=rollbacks,
        queries=Queries(bus),
        monitoring=NatsMonitoring(bus, monitoring),
        audit=AuditLog(bus),
        feed=Feed(bus),
        models=NatsModels(bus),
        keys=NatsKeys(bus, ring, settings.privacy.retention_days * DAY_MS),
        salts=salts,
        erasures=NatsErasures(bus, lambda test_id, unit: late().erase(test_id, unit)),
        path=late,
    )
    ring.on_change(parts.feed.look)
    orders = Orders(parts, NatsPlans(bus))
    keeper = Keeper(parts, orders)
    lifecycle = Lifecycle(parts, step_s)
    limits = limits_of(settings)
    door = Door(ring, settings.security.failed_keys_per_minute)
    told = Accounts(parts)
    handlers = (
        Handlers(parts, lifecycle), told, ModelHandlers(parts, orders), KeyHandlers(parts, ring), UnitHandlers(parts),
    )  # fmt: skip
    recorder = Recorder(parts.audit, root_salt, clients=settings.security.anomalies.new_places_of_clients)
    dispatcher = Dispatcher(handlers, door, limits, recorder)
    door.on_guessing(recorder.guessed)
    forgetter = Forgetter(parts, forget_s)
    expiring = Expiring(parts.keys, Notices(bus))
    max_body = settings.http.max_body_bytes
    live = Live(told.snapshot)
    app = build_app(dispatcher, parts.feed, live, max_body)
    actions = Actions(bus, experiments, outbox.kick)
    peers = NatsPeers(bus, limits.share)
    return Control(
        experiments, app, dispatcher, recorder, parts, lifecycle, actions, keeper, forgetter, expiring, max_body,
        door, limits, peers, live,
    )  # fmt: skip


def limits_of(settings: Settings) -> Limits:
    """The limits that the configuration gives each key; a burst is ten seconds' worth where it says nothing of it."""
    given = settings.security.rate_limit
    feedback = given.inference_per_minute if given.feedback_per_minute is None else given.feedback_per_minute
    return Limits(
        control=RateLimiter(given.control_per_minute, given.control_burst),
        feedback=RateLimiter(feedback, max(1, feedback // 6)),
        inference=RateLimiter(given.inference_per_minute, max(1, given.inference_per_minute // 6)),
    )
