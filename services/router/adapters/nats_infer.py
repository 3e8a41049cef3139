"""The router's end of the frame protocol of `schemas.v1.inference`: one inbox, many streams.

nats-py awaits the callbacks of a subscription one by one and drops what overflows, so the inbox has no limit
and its callback only files the frame: one slow client never holds another's stream.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from schemas.v1.inference import INITIAL_CREDIT, KEEPALIVE_S, Flow, InferRequest, encode, pack
from services._runtime.bus import Bus, inbox_prefix
from services._runtime.telemetry import get_logger
from services.router.adapters.workers import Worker

log = get_logger(__name__)

CREDIT_STEP = INITIAL_CREDIT // 4
"""Pieces taken before the worker is told, so that credit costs one message for many pieces."""

MAX_UNSENT = 1000
"""Workers whose cancels are kept while the connection is away."""


class Stream:
    """One request on one worker. ``frames`` are raw payloads in order; `wait` returns when something changed.

    ``timed_out``: the deadline passed while waiting. ``lost``: the worker fell silent. ``broken``: frames may be
    missing, because the connection was away. ``unreached``: the worker is not on the bus.
    ``ended``: the last frame has been taken.
    """

    __slots__ = (
        "_waiter", "broken", "closed", "deadline", "ended", "frames", "loop", "lost", "owed", "timed_out", "token",
        "unreached", "until", "worker",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: Worker, token: str, until: float) -> None:
        self.loop = loop
        self.worker = worker
        self.token = token
        self.frames: deque[bytes] = deque()
        self.deadline = until
        self.until = until
        self.owed = 0
        self.unreached = False
        self.timed_out = self.lost = self.broken = self.ended = self.closed = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, timeout_s: float) -> None:
        """Until the next frame, `wake`, or the end of ``timeout_s`` or of the whole request (then ``timed_out``)."""
        self.deadline = min(self.loop.time() + timeout_s, self.until)
        self._waiter = waiter = self.loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """End the present `wait`."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def expire(self, now: float) -> None:
        """Called by the ticker: time only counts while the router waits for the worker, not for the client."""
        if self._waiter is not None and now >= self.deadline:
            self.timed_out = True
            self.wake()


class InferClient:
    """Opens streams, files frames, returns credit, keeps routers' leases on their streams alive, cancels."""

    def __init__(self, bus: Bus, router_id: str, unreached: Callable[[Worker], None]) -> None:
        self._bus = bus
        self._unreached = unreached
        self._router = router_id
        self._prefix = f"{inbox_prefix(bus.settings, bus.service)}.{router_id}."
        self._cut = len(self._prefix)
        self._streams: dict[str, Stream] = {}
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._credit: dict[str, dict[str, int]] = {}
        self._cancel: dict[str, list[str]] = {}
        self._dirty = asyncio.Event()
        self._flow_task: asyncio.Task[None] | None = None
        self._kept_alive = 0.0

    async def start(self) -> None:
        """Subscribe the inbox; the connection must stand."""
        self._loop = asyncio.get_running_loop()
        await self._bus.nc.subscribe(f"{self._prefix}*", cb=self._file, pending_msgs_limit=0, pending_bytes_limit=0)
        await self._bus.nc.flush()
        self._flow_task = asyncio.create_task(self._flow(), name="infer-flow")

    async def stop(self) -> None:
        """Tell workers what nobody waits for any more and end."""
        for stream in list(self._streams.values()):
            self.close(stream)
        if self._flow_task:
            self._flow_task.cancel()
            await asyncio.gather(self._flow_task, return_exceptions=True)
        await self._send_flow()

    @property
    def connected(self) -> bool:
        """Whether requests can be sent now."""
        return self._bus.connected

    @property
    def open_streams(self) -> int:
        """Requests on workers now."""
        return len(self._streams)

    async def open(
        self, worker: Worker, *, route: str, stream: bool, caller: str, body: bytes, timeout_s: float, total_s: float,
        trace: str = "", request_id: str = "",
    ) -> Stream:  # fmt: skip
        """Send a request to a worker, which shows ``request_id`` to whoever reads its figures. Raises NatsError when
        the connection is away; nothing is buffered then.
        """
        loop = self._loop
        assert loop is not None, "InferClient.start was not awaited"
        token = f"{self._router}{next(self._numbers):x}"
        head = InferRequest(
            id=token, router=self._router, route=route, stream=stream, caller=caller,
            deadline_ms=int(timeout_s * 1000), credit=INITIAL_CREDIT, trace=trace, request_id=request_id,
        )  # fmt: skip
        opened = Stream(loop, worker, token, loop.time() + total_s)
        self._streams[token] = opened
        worker.outstanding += 1
        try:
            await self._bus.nc.publish(worker.infer_subject, pack(b"H", head, body), reply=self._prefix + token)
        except BaseException:
            self._drop(opened)
            raise
        return opened

    def close(self, stream: Stream) -> None:
        """The stream is of no more interest; a worker that has not finished it is told to abort."""
        if self._drop(stream) and not stream.ended:
            self._cancel.setdefault(stream.worker.flow_subject, []).append(stream.token)
            self._dirty.set()

    def taken(self, stream: Stream, pieces: int) -> None:
        """So many pieces with credit have gone on to the client."""
        stream.owed += pieces
        if stream.owed >= CREDIT_STEP:
            self._credit.setdefault(stream.worker.flow_subject, {})[stream.token] = stream.owed
            stream.owed = 0
            self._dirty.set()

    def lost(self, worker: Worker) -> None:
        """A worker fell silent: wake those who wait for it."""
        for stream in self._of(lambda s: s.worker is worker):
            stream.lost = True
            stream.wake()

    def cut_off(self) -> None:
        """The connection is away: no stream can be trusted to be whole."""
        for stream in self._of(lambda _: True):
            # What has come is whole; what comes after a gap must not be taken for its continuation.
            del self._streams[stream.token]
            stream.broken = True
            stream.wake()

    def tick(self, now: float) -> None:
        """Time-outs, and once a second the keep-alive; ``now`` on the loop's clock."""
        for stream in self._streams.values():
            stream.expire(now)
        if now - self._kept_alive >= KEEPALIVE_S:
            self._kept_alive = now
            for stream in self._streams.values():
                self._credit.setdefault(stream.worker.flow_subject, {})
            if self._credit or self._cancel:
                self._dirty.set()

    def _of(self, wanted: Callable[[Stream], bool]) -> list[Stream]:
        return [stream for stream in self._streams.values() if wanted(stream)]

    def _drop(self, stream: Stream) -> bool:
        if stream.closed:
            return False
        stream.closed = True
        self._streams.pop(stream.token, None)
        stream.worker.outstanding -= 1
        return True

    async def _file(self, msg: Msg) -> None:
        stream = self._streams.get(msg.subject[self._cut :])
        if stream is None:
            return
        if msg.data:
            stream.frames.append(msg.data)
        else:
            # The server's own answer: nobody subscribes to that worker's subject any more.
            stream.unreached = True
            self._unreached(stream.worker)
        stream.wake()

    async def _flow(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._send_flow()

    async def _send_flow(self) -> None:
        credit, self._credit = self._credit, {}
        cancel, self._cancel = self._cancel, {}
        for subject in credit.keys() | cancel.keys():
            flow = Flow(router=self._router, credit=credit.get(subject, {}), cancel=cancel.get(subject, []))
            try:
                await self._bus.nc.publish(subject, encode(flow))
            except NatsError as exc:
                log.debug("flow_not_sent", subject=subject, error=repr(exc))
                if flow.cancel and len(self._cancel) < MAX_UNSENT:
                    self._cancel.setdefault(subject, []).extend(flow.cancel)  # the next keep-alive takes it along
