"""The KV bucket `experiments`: a mirror in memory, and compare-and-set with retries."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from schemas import streams
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import Experiment, OutboxEvent, TestResult
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services.router.adapters.kv_table import GONE, PATIENCE_S, Gone, KvTable
from services.router.adapters.nats_outbox import Sent
from services.router.domain.commands import Command
from services.router.domain.experiment import apply, without_events
from services.router.domain.refusals import Unavailable
from services.router.domain.retention import kept

MakeCommand = Callable[[Experiment | None], Command]


class NatsExperiments:
    """The experiments of all ``model_a``; reads come from memory, changes are compare-and-set.

    ``on_change`` callbacks get every entry that changed (quick, not async).
    """

    def __init__(self, bus: Bus) -> None:
        self._table = KvTable(bus, streams.EXPERIMENTS.name, Experiment, self._took, _same)
        self._by_key: dict[str, Experiment] = {}
        self._live: dict[str, Experiment] = {}
        self._by_id: dict[str, Experiment] = {}
        self._waiting: dict[str, list[asyncio.Future[Experiment]]] = {}
        self._callbacks: list[Callable[[Experiment], None]] = []

    async def start(self) -> None:
        """Read the bucket and begin to watch it. Raises TimeoutError when the bus does not answer in time."""
        await self._table.start()

    async def stop(self) -> None:
        """End the watch."""
        await self._table.stop()
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._table.missing()

    def on_change(self, callback: Callable[[Experiment], None]) -> None:
        """Call ``callback`` with every entry that changes from now on."""
        self._callbacks.append(callback)

    # ports.Experiments ------------------------------------------------------------------------------------

    def current(self, model_a: str) -> Experiment | None:
        """The live experiment whose ``model_a`` this is."""
        return self._live.get(model_a)

    def by_id(self, test_id: str) -> Experiment | None:
        """The experiment of that id: live, or the last one of its key."""
        return self._by_id.get(test_id)

    def live(self) -> list[Experiment]:
        """All live experiments, oldest start first."""
        return sorted(self._live.values(), key=lambda e: (e.started_ms or e.created_ms, e.test_id))

    # what else the control side reads ---------------------------------------------------------------------

    def running(self) -> list[Experiment]:
        """Live experiments that have begun, oldest start first."""
        return [test for test in self.live() if test.status is not TestStatus.SCHEDULED]

    def entries(self) -> list[Experiment]:
        """Every entry, live or ended."""
        return list(self._by_key.values())

    def results(self) -> list[TestResult]:
        """Results that entries still hold."""
        return [r for entry in self._by_key.values() for r in (entry.result, *entry.recent) if r is not None]

    def result(self, test_id: str) -> TestResult | None:
        """The result of an ended test, if an entry still holds it."""
        return next((r for r in self.results() if r.test_id == test_id), None)

    async def ended(self, test_id: str, timeout_s: float) -> Experiment | None:
        """Wait until a test has ended; its entry, or None when it goes on (or is unknown) after ``timeout_s``."""
        test = self._by_id.get(test_id)
        if test is not None and not test.live:
            return test
        future: asyncio.Future[Experiment] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(test_id, []).append(future)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return None
        finally:
            waiting = self._waiting.get(test_id, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._waiting.pop(test_id, None)

    # changes ----------------------------------------------------------------------------------------------

    async def change(
        self, model_a: str, command: MakeCommand, *, patience_s: float = PATIENCE_S
    ) -> Experiment:
        """Apply a command to the entry of ``model_a`` and return the entry as it now stands.

        ``command`` is asked again with the present state whenever somebody came between. Raises what the reducer
        raises (Refused), and Unavailable when the bus does not take the change within ``patience_s``.
        """

        def act(state: Experiment | None) -> Experiment:
            new, _events = apply(state, command(state), now_ms())
            return new

        changed = await self._table.set(model_a, act, patience_s)
        if changed is None:
            raise Unavailable(f"the entry of '{model_a}' is empty", retry_after_s=1)
        return changed

    async def fresh(self) -> list[Experiment]:
        """Every entry past every copy. Raises Unavailable."""
        return await self._table.fresh_all()

    async def fresh_live(self) -> list[Experiment]:
        """Live experiments past every copy: one that was written before the call is among them. Raises Unavailable."""
        return [test for test in await self.fresh() if test.live]

    async def forget(self, model_a: str, now: int, retention_ms: int) -> bool:
        """Take out of an entry what ended so long before ``now`` (Unix ms); whether any went. Raises Unavailable."""

        def act(entry: Experiment) -> Experiment | Gone:
            return kept(entry, now, retention_ms) or GONE

        return await self._table.rewrite(model_a, act)

    # nats_outbox.Entries ------------------------------------------------------------------------------------

    def outboxes(self) -> Iterable[tuple[str, Sequence[OutboxEvent]]]:
        """The events that entries hold, by ``model_a``."""
        return [(entry.model_a, entry.outbox) for entry in self._by_key.values() if entry.outbox]

    def sent(self, event: OutboxEvent) -> Sent:
        """An event of a test as it is published."""
        data = TestEvent.model_validate(event.data)
        made = envelope(event.type, event.id, "router", event.at_ms, data, data.test_id)
        return Sent(event.id, event.subject, dump(made))

    async def clear_outbox(self, key: str, published: Sequence[OutboxEvent]) -> None:
        """Take published events out of the outbox of ``model_a``."""
        ids = [event.id for event in published]

        def act(state: Experiment | None) -> Experiment | None:
            return None if state is None else without_events(state, ids)

        await self._table.set(key, act)

    # the mirror's changes -----------------------------------------------------------------------------------

    def _took(self, key: str, entry: Experiment | None) -> None:
        before = self._by_key.get(key)
        if entry is None:
            self._by_key.pop(key, None)
            if before is not None:
                self._by_id.pop(before.test_id, None)
                self._live.pop(before.model_a, None)
            return
        if before is not None and before.test_id != entry.test_id:
            self._by_id.pop(before.test_id, None)
            self._wake(before.test_id, before)
        self._by_key[key] = entry
        self._by_id[entry.test_id] = entry
        if entry.live:
            self._live[entry.model_a] = entry
        else:
            self._live.pop(entry.model_a, None)
            self._wake(entry.test_id, entry)
        for callback in self._callbacks:
            callback(entry)

    def _wake(self, test_id: str, entry: Experiment) -> None:
        for future in self._waiting.pop(test_id, []):
            if not future.done():
                future.set_result(entry)


def _same(stored: Experiment, written: Experiment) -> bool:
    """Whether a stored entry is what was written, but for events that have been published since."""
    if stored.test_id != written.test_id or stored.version != written.version:
        return False
    return stored.model_dump(exclude={"outbox"}) == written.model_dump(exclude={"outbox"})
