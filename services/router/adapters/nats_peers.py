"""Routers hear each other on `cypria.peer.*`, so that each takes its share of the limits."""

import asyncio
import secrets
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.routers import RouterBeat
from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.domain.peers import BEAT_S, Peers

log = get_logger(__name__)


class NatsPeers:
    """``changed`` is called with the number of routers that serve, whenever it changes (quick, not async).

    While the bus is away nobody can be heard, and the number stays as it was.
    """

    def __init__(self, bus: Bus, changed: Callable[[int], None]) -> None:
        self._bus = bus
        self._changed = changed
        self._me = f"r{secrets.token_hex(6)}"
        self._peers = Peers()
        self._generation = 0
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self.routers = 1

    async def start(self) -> None:
        """Say that this router lives, and hear the others. The connection must stand."""
        self._generation = self._bus.generation
        self._subscription = await self._bus.nc.subscribe(subjects.PEER, cb=self._heard)
        self._task = asyncio.create_task(self._run(), name="peers")

    async def stop(self) -> None:
        """Say good-bye, so that the others take over this router's share at once."""
        await end(self._task)
        if self._subscription is not None and self._bus.connected:
            await self._subscription.unsubscribe()
            await self._tell(leaving=True)

    async def _run(self) -> None:
        while True:
            bus = self._bus
            if not bus.connected or bus.generation != self._generation:
                self._generation = bus.generation
                self._peers.forgive(monotonic())
            if bus.connected:
                await self._tell()
                self._count()
            await asyncio.sleep(BEAT_S)

    async def _heard(self, msg: Msg) -> None:
        try:
            beat = RouterBeat.model_validate_json(msg.data)
        except ValidationError as exc:
            log.warning("peer_undecodable", errors=exc.error_count())
            return
        if beat.router == self._me:
            return
        if beat.leaving:
            self._peers.left(beat.router)
        elif self._peers.heard(beat.router, monotonic()):
            await self._tell()  # it knows nobody yet
        self._count()

    def _count(self) -> None:
        routers = self._peers.live(monotonic())
        if routers != self.routers:
            self.routers = routers
            self._changed(routers)

    async def _tell(self, *, leaving: bool = False) -> None:
        beat = RouterBeat(router=self._me, leaving=leaving)
        try:
            await self._bus.nc.publish(subjects.peer(self._me), beat.model_dump_json().encode())
        except NatsError as exc:
            log.debug("beat_not_sent", error=repr(exc))
