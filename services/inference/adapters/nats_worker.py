"""The worker on the bus: requests in, credit and cancels in, heartbeats out.

Plain nats-py callbacks: a FastStream subscriber costs ten times as much for each message.
"""

import asyncio

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from schemas import subjects
from schemas.v1.common import Outcome
from schemas.v1.inference import (
    HEARTBEAT_S,
    ROUTER_LOST_S,
    SINGLE,
    Final,
    FrameError,
    InferRequest,
    ReplyHead,
    SingleHead,
    decode_flow,
    encode,
    pack,
    unpack,
)  # fmt: skip
from services._runtime.bus import TRANSIENT, Bus
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services._runtime.tracing import Traces
from services.inference.adapters.beats import group_of, heartbeat
from services.inference.adapters.job import LOST, STOPPED, Job
from services.inference.adapters.machine import Machine
from services.inference.adapters.models import Models
from services.inference.adapters.nats_events import ModelEvents
from services.inference.adapters.served import Place
from services.inference.adapters.serving import Server
from services.inference.domain.formats import error as error_body

log = get_logger(__name__)

_CLIENT_CANCEL = Outcome.CLIENT_CANCEL.value
_TIMEOUT = Outcome.TIMEOUT.value
_NOT_HERE = pack(
    SINGLE,
    SingleHead(ReplyHead(503, retry_after=1), Final(outcome=Outcome.REJECTED.value, error="overloaded", reset=True)),
    error_body("this worker does not have the model any more", "overloaded"),
)


class NatsWorker:
    """Takes requests of every model of ``models`` under the id ``worker``, and tells how each does."""

    def __init__(
        self, bus: Bus, models: Models, worker: str, *, pool: str = "default", machine: Machine | None = None,
        events: ModelEvents | None = None, traces: Traces | None = None,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._models = models
        self.worker = worker
        self._pool = pool
        self._machine = machine or Machine()
        self._events = events
        self._server = Server(self._send, traces)
        self._jobs: dict[tuple[str, str], Job] = {}
        self._heard: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._cancelled: dict[tuple[str, str], float] = {}
        self._subscriptions: list[Subscription] = []
        self._ticker: asyncio.Task[None] | None = None
        self._beat_now = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that have not had their last frame."""
        return len(self._jobs)

    async def start(self) -> None:
        """Subscribe and begin to beat."""
        nc = self._bus.nc
        # One for all: models come and go while this worker runs.
        self._subscriptions.append(await nc.subscribe(subjects.infer_all(self.worker), cb=self._on_request))
        self._subscriptions.append(await nc.subscribe(subjects.flow(self.worker), cb=self._on_flow))
        await nc.flush()
        self._ticker = asyncio.create_task(self._tick(), name="inference-heartbeat")

    def beat_soon(self) -> None:
        """Send the next heartbeats at once: a state has changed."""
        self._beat_now.set()

    async def stop(self, limit_s: float) -> None:
        """After the models have stopped taking requests: let what is in flight finish, up to ``limit_s`` seconds."""
        tasks = [job.task for job in self._jobs.values() if job.task]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)
        for job in list(self._jobs.values()):
            job.stop(STOPPED)
        rest = [job.task for job in self._jobs.values() if job.task]
        if rest:
            await asyncio.wait(rest, timeout=1.0)
        if self._ticker:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self._beat()
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except TRANSIENT as exc:
                log.warning("unsubscribe_failed", error=repr(exc))

    async def _send(self, subject: str, payload: bytes) -> None:
        try:
            await self._bus.nc.publish(subject, payload)
        except TRANSIENT as exc:
            # Nobody can be told: the router counts this request as failed when it hears no more of it.
            log.warning("reply_lost", error=repr(exc))

    async def _on_request(self, msg: Msg) -> None:
        if not msg.reply.startswith(subjects.INBOX):  # this worker publishes there, with its own permissions
            return
        now = monotonic()
        try:
            head, body = unpack(msg.data, InferRequest)
        except FrameError as exc:
            await self._refuse(msg.reply, f"not a request frame: {exc}")
            return
        key = (head.router, head.id)
        if self._cancelled.pop(key, None) is not None:
            return
        if key in self._jobs:
            await self._refuse(msg.reply, f"request id '{head.id}' is in flight already")
            return
        place = self._place(msg.subject)
        if place is None:
            await self._send(msg.reply, _NOT_HERE)
            return
        place.used_at = now
        job = Job(place.present, head, body, msg.reply, now)
        self._jobs[key] = job
        self._heard[head.router] = now
        job.task = asyncio.create_task(self._serve(place, job))
        job.task.add_done_callback(lambda task: self._done(key, task))

    def _place(self, subject: str) -> Place | None:
        name = self._names.get(subject)
        if name is None:
            try:
                name = subjects.infer_model(subject)
            except ValueError:
                return None
            if (found := self._models.find(name)) is not None:
                self._names[subject] = name  # of what is here only: anything else could be any number of names
            return found
        return self._models.find(name)

    def forget(self, name: str) -> None:
        """The model is here no more."""
        self._names.pop(subjects.infer(name, self.worker), None)
        self._server.counts.forget(name)

    async def _serve(self, place: Place, job: Job) -> None:
        # Asked again: between its coming and its turn another engine may have taken over. From here to its place in the
        # queue nothing comes between, so whatever drains afterwards waits for it.
        job.model = place.present
        try:
            await self._server.run(job)
        finally:
            place.used_at = monotonic()

    async def _refuse(self, reply: str, reason: str) -> None:
        head = SingleHead(ReplyHead(400), Final(outcome=Outcome.CLIENT_ERROR.value, error="invalid_request_error"))
        await self._send(reply, pack(SINGLE, head, error_body(reason, "invalid_request_error")))

    def _done(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._jobs.pop(key, None)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("request_task_failed", error=repr(exc))

    async def _on_flow(self, msg: Msg) -> None:
        try:
            flow = decode_flow(msg.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            log.warning("bad_flow_message", error=str(exc))
            return
        router = flow.router
        self._heard[router] = monotonic()
        for request_id in flow.cancel:
            if job := self._jobs.get((router, request_id)):
                job.stop(_CLIENT_CANCEL)
            else:
                # The two subjects have queues of their own, so a cancel may overtake its request.
                self._cancelled[router, request_id] = self._heard[router]
        for request_id, credit in flow.credit.items():
            if job := self._jobs.get((router, request_id)):
                await self._server.grant(job, credit)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._beat_now.clear()
            try:
                self._models.check()
                self._end_overdue(monotonic())
                self._look()
                await self._beat()
            except Exception:
                # A worker without heartbeats is a dead one: go on, whatever it was.
                log.exception("tick_failed")
            timer = loop.call_later(HEARTBEAT_S, self._beat_now.set)
            try:
                await self._beat_now.wait()
            finally:
                timer.cancel()

    def _end_overdue(self, now: float) -> None:
        routers = set()
        for job in list(self._jobs.values()):
            router = job.frame.router
            routers.add(router)
            if now - self._heard.get(router, job.started) > ROUTER_LOST_S:
                job.stop(LOST)
            elif job.overdue(now):
                job.stop(_TIMEOUT)
        for router in [name for name in self._heard if name not in routers]:
            del self._heard[router]
        for key in [key for key, at in self._cancelled.items() if now - at > ROUTER_LOST_S]:
            del self._cancelled[key]

    async def _beat(self) -> None:
        nc = self._bus.nc
        if not nc.is_connected:
            return
        for place in self._models.all():
            beat = heartbeat(place, self.worker, self._pool, self._machine.sample)
            try:
                await nc.publish(subjects.heartbeat(place.name, self.worker), encode(beat))
            except TRANSIENT as exc:
                log.warning("heartbeat_failed", error=repr(exc))

    def _look(self) -> None:
        """Say which processes are to be looked at from now on, and how far loads have come."""
        editions = [edition for place in self._models.all() for edition in place.editions]
        self._machine.groups = {edition.key: group_of(edition) for edition in editions if edition.engine is not None}
        if self._events is not None:
            self._events.progressed(editions)
