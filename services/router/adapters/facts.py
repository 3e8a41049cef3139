"""Sends fact batches to METRICS: spooled first, one publish in flight for each partition, its PubAck awaited.

A killed router loses what it had not yet put into a batch: at most one flush interval (`FLUSH_S`, 100 ms) of facts,
and the write of the file. What was written is sent again under its number, by this process or its successor.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from nats.errors import Error as NatsError

from schemas import subjects
from schemas.subjects import PARTITIONS
from schemas.v1.cloudevent import binary_headers
from services._runtime.bus import Bus, publish_durable
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.router.adapters.spool import MAX_BYTES, Spool, SpoolFull
from services.router.domain.facts import FLUSH_S, MAX_BATCH, Batcher, Fact, FactBatch, Feedback, encode

log = get_logger(__name__)

KEEP_IN_MEMORY = 64
"""Payloads of one partition held in memory besides the disk; later ones are read back when their turn comes."""
LATE_S = 2.0


class FactPublisher:
    """Numbers, spools and publishes facts; `flush` waits until all of them are acknowledged."""

    def __init__(self, bus: Bus, batcher: Batcher, root: Path, max_spool_bytes: int = MAX_BYTES) -> None:
        self._bus = bus
        self._batcher = batcher
        self._root = root
        self._spool = Spool.create(root, batcher.router_epoch, max_spool_bytes)
        self._queues: list[deque[tuple[int, bytes | None, float]]] = [deque() for _ in range(PARTITIONS)]
        self._ready = [asyncio.Event() for _ in range(PARTITIONS)]
        self._taking = asyncio.Lock()
        self._kick = asyncio.Event()
        self._progress = asyncio.Event()
        self._acked: dict[str, dict[int, int]] = {}
        self._done: list[tuple[int, int]] = []
        """Batches that the bus has and the disk need not keep; removed with the next write, in one trip to a thread."""
        self._recovering = False
        self._tasks: list[asyncio.Task[None]] = []
        self.dropped = 0

    def add(self, partition: int, fact: Fact) -> None:
        """One fact; a full batch goes at once."""
        if self._batcher.add(partition, fact) >= MAX_BATCH:
            self._kick.set()

    async def record(self, partition: int, feedback: Feedback, timeout_s: float) -> bool:
        """Add feedback and wait until METRICS has it; False when that cannot be said in time."""
        return await self._acknowledged(partition, self._batcher.hear(partition, feedback), timeout_s)

    async def _acknowledged(self, partition: int, number: int, timeout_s: float) -> bool:
        epoch = self._batcher.router_epoch
        deadline = monotonic() + timeout_s
        while self._acked.get(epoch, {}).get(partition, 0) < number:
            self._progress.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())):
                    await self._progress.wait()
            except TimeoutError:
                return False
        return True

    async def start(self) -> None:
        """Begin to send, first what routers before this one left on the disk."""
        self._recovering = True
        self._tasks = [asyncio.create_task(self._recover(), name="facts-recover")]
        self._tasks += [asyncio.create_task(self._send(p), name=f"facts-{p}") for p in range(PARTITIONS)]
        self._tasks.append(asyncio.create_task(self._tick(), name="facts-tick"))

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Send what waits; what cannot be sent in time stays on the disk for the next router."""
        await self.flush(timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._on_disk([])
        await asyncio.to_thread(self._spool.close)

    async def flush(self, timeout_s: float) -> dict[str, dict[int, int]]:
        """Publish all there is; the highest acknowledged batch number by router epoch and partition."""
        deadline = monotonic() + timeout_s
        await self._take()
        while any(self._queues) or self._recovering:
            self._progress.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())):
                    await self._progress.wait()
            except TimeoutError:
                break
        return {epoch: dict(numbers) for epoch, numbers in self._acked.items()}

    async def advance(self, partition: int, timeout_s: float) -> bool:
        """Publish what waits of a partition and an empty batch behind it; whether METRICS has it in time."""
        async with self._taking:
            batches = [*self._batches(partition), self._batcher.empty(partition)]
            payloads = [(partition, batch.n, encode(batch)) for batch in batches]
            failed = await self._on_disk(payloads)
            for batch, (_, n, payload) in zip(batches, payloads, strict=True):
                self._enqueue(partition, n, payload, len(batch.facts) + len(batch.feedback), failed.get((partition, n)))
        return await self._acknowledged(partition, batches[-1].n, timeout_s)

    def spooled(self) -> tuple[int, int]:
        """(batches waiting for their PubAck, bytes on the disk)."""
        return sum(map(len, self._queues)), self._spool.bytes

    def degraded(self) -> bool:
        """Whether batches have waited for more than two seconds, or facts were lost."""
        now = monotonic()
        return self.dropped > 0 or any(queue and now - queue[0][2] > LATE_S for queue in self._queues)

    async def _tick(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FLUSH_S):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()
            await self._take()

    async def _take(self) -> None:
        async with self._taking:
            batches = [batch for p in range(PARTITIONS) for batch in self._batches(p)]
            payloads = [(batch.partition, batch.n, encode(batch)) for batch in batches]
            if not payloads and not self._done:
                return
            failed = await self._on_disk(payloads)
            for batch, (partition, n, payload) in zip(batches, payloads, strict=True):
                self._enqueue(partition, n, payload, len(batch.facts) + len(batch.feedback), failed.get((partition, n)))

    def _batches(self, partition: int) -> Iterator[FactBatch]:
        while (batch := self._batcher.take(partition)) is not None:
            yield batch

    async def _on_disk(self, payloads: list[tuple[int, int, bytes]]) -> dict[tuple[int, int], OSError]:
        """Write these, remove what is done with: one trip to a thread, since each costs more than its files do."""
        done, self._done = self._done, []
        failed = await asyncio.to_thread(self._spool.exchange, payloads, done)
        for batch in failed.keys() & set(done):
            log.error("spool_not_removed", partition=batch[0], n=batch[1], error=repr(failed[batch]))
        return failed

    def _enqueue(self, partition: int, n: int, payload: bytes, facts: int, failed: OSError | None) -> None:
        queue = self._queues[partition]
        held: bytes | None = payload
        if failed is None:
            if len(queue) >= KEEP_IN_MEMORY:
                held = None
        elif isinstance(failed, SpoolFull) and len(queue) >= KEEP_IN_MEMORY:
            self.dropped += facts
            log.error("facts_dropped", partition=partition, n=n, facts=facts, reason=str(failed))
            return
        else:
            log.error("spool_not_written", partition=partition, n=n, error=repr(failed))
        queue.append((n, held, monotonic()))
        self._ready[partition].set()

    async def _send(self, partition: int) -> None:
        queue, ready = self._queues[partition], self._ready[partition]
        epoch = self._batcher.router_epoch
        while True:
            await ready.wait()
            while queue:
                n, payload, _ = queue[0]
                try:
                    if payload is None:
                        payload = await asyncio.to_thread(self._spool.read, partition, n)
                    await self._publish(epoch, partition, n, payload)
                    self._done.append((partition, n))
                    self._note(epoch, partition, n)
                except OSError as exc:
                    log.error("spool_failed", partition=partition, n=n, error=repr(exc))
                queue.popleft()
            ready.clear()
            self._progress.set()

    async def _publish(self, epoch: str, partition: int, n: int, payload: bytes) -> None:
        headers = binary_headers("facts", f"{epoch}.{partition}.{n}", "router")
        while True:
            try:
                await publish_durable(self._bus.js, subjects.metric(partition), payload, headers)
            except (NatsError, TimeoutError, OSError) as exc:
                log.warning("facts_not_published", partition=partition, n=n, error=repr(exc))
            else:
                return

    def _note(self, epoch: str, partition: int, n: int) -> None:
        self._acked.setdefault(epoch, {})[partition] = n
        self._progress.set()

    async def _recover(self) -> None:
        """Send what dead router processes left, under their own epochs and numbers."""
        try:
            for spool in await asyncio.to_thread(lambda: list(Spool.abandoned(self._root))):
                batches = await asyncio.to_thread(spool.batches)
                if batches:
                    log.info("facts_recovered", router_epoch=spool.router_epoch, batches=len(batches))
                for partition, n in batches:
                    payload = await asyncio.to_thread(spool.read, partition, n)
                    await self._publish(spool.router_epoch, partition, n, payload)
                    await asyncio.to_thread(spool.remove, partition, n)
                    self._note(spool.router_epoch, partition, n)
                await asyncio.to_thread(spool.close)
        except OSError as exc:
            log.error("spool_not_recovered", folder=str(self._root), error=repr(exc))
        finally:
            self._recovering = False
            self._progress.set()
