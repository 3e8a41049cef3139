"""The workers that heartbeats show, and the choice of one for a request."""

import random
from collections.abc import Callable, Collection

from schemas import subjects
from schemas.v1.inference import HEARTBEAT_S, MISSED_HEARTBEATS, Heartbeat
from schemas.v1.models import ModelEntry
from services.router.domain.models import as_in_file, standing
from services.router.ports import ModelInfo

GONE_S = HEARTBEAT_S * MISSED_HEARTBEATS
STALL_S = 0.3
"""A sweep that comes so much later than the one before was held up itself; silence meanwhile proves nothing."""
MAX_REMEMBERED = 1000

Waiter = Callable[[], None]


class Worker:
    """One worker of one model. ``outstanding``: this router's requests on it; ``gone``: three heartbeats missed."""

    __slots__ = (
        "beat", "flow_subject", "free", "gone", "id", "infer_subject", "last_seen", "model", "outstanding", "ready",
    )  # fmt: skip

    def __init__(self, beat: Heartbeat, now: float) -> None:
        self.id = beat.worker
        self.model = beat.model
        self.infer_subject = subjects.infer(beat.model, beat.worker)
        self.flow_subject = subjects.flow(beat.worker)
        self.outstanding = 0
        self.gone = False
        self.heard(beat, now)

    def heard(self, beat: Heartbeat, now: float) -> None:
        """Take in a heartbeat."""
        self.beat = beat
        self.last_seen = now
        self.ready = beat.state == "ready" and not beat.stalled
        self.free = beat.free


class WorkerTable:
    """All living workers by model; ``on_lost`` is told of each that falls silent. Times are monotonic seconds."""

    def __init__(self, configured: Collection[str]) -> None:
        self._models: dict[str, dict[str, Worker]] = {}
        self._configured = frozenset(configured)
        self._known = set(configured)
        self._removed: dict[str, ModelEntry] = {}
        self._registered: set[str] = set()
        self.on_lost: Callable[[Worker], None] | None = None
        self._waiters: dict[str, set[Waiter]] = {}
        self._swept: float | None = None

    def heard(self, beat: Heartbeat, now: float) -> None:
        """A heartbeat came."""
        workers = self._models.get(beat.model)
        if workers is None:
            workers = self._models[beat.model] = {}
            if beat.model not in self._removed and len(self._known) < MAX_REMEMBERED:
                self._known.add(beat.model)
        if self._removed:
            self._returned(beat)
        worker = workers.get(beat.worker)
        if worker is None:
            worker = workers[beat.worker] = Worker(beat, now)
        else:
            worker.heard(beat, now)
        if worker.ready and self._waiters:
            self.wake(beat.model)

    def wanted(self, name: str, entry: ModelEntry | None) -> None:
        """What the registry says of a model from now on; None: nothing."""
        self._removed.pop(name, None)
        self._registered.discard(name)
        entry = standing(entry)
        if entry is None:
            return
        if entry.desired != "removed":
            self._registered.add(name)
            self._known.add(name)
            return
        self._removed[name] = entry
        mine = [worker.beat for worker in self._models.get(name, {}).values()]
        if name not in self._configured and not any(as_in_file(entry, beat) for beat in mine):
            self._known.discard(name)

    def _returned(self, beat: Heartbeat) -> None:
        """A model that was removed is known again once a worker has it of its own configuration's accord."""
        removed = self._removed.get(beat.model)
        if removed is not None and as_in_file(removed, beat):
            self._known.add(beat.model)

    def sweep(self, now: float) -> None:
        """Give up the workers that have been silent for too long."""
        late = now - self._swept if self._swept is not None else 0.0
        self._swept = now
        if late > STALL_S:
            self.forgive(now)
            return
        for model in list(self._models):
            workers = self._models[model]
            for worker in [w for w in workers.values() if now - w.last_seen > GONE_S]:
                self.remove(worker)

    def remove(self, worker: Worker) -> None:
        """The worker is not there; its next heartbeat brings it back."""
        workers = self._models.get(worker.model, {})
        if workers.get(worker.id) is worker:
            del workers[worker.id]
            if not workers:
                del self._models[worker.model]
            worker.gone = True
            if self.on_lost is not None:
                self.on_lost(worker)

    def forgive(self, now: float) -> None:
        """Nobody could be heard until now (the connection was away): count silence from here."""
        for workers in self._models.values():
            for worker in workers.values():
                worker.last_seen = max(worker.last_seen, now)

    def living(self) -> list[str]:
        """Models that have a living worker."""
        return list(self._models)

    def ready(self, model: str) -> list[Worker]:
        """The model's workers that take requests."""
        return [worker for worker in self._models.get(model, {}).values() if worker.ready]

    def known(self, model: str) -> bool:
        """Whether a configuration or the registry names the model, or a worker has had it, and nobody removed it."""
        return model in self._known

    def alive(self, worker: Worker) -> bool:
        """Whether this very worker sends heartbeats again (or still)."""
        return worker.id in self._models.get(worker.model, {})

    def choose(self, model: str, exclude: Collection[str] = ()) -> Worker | None:
        """Of two ready workers at random the one with less to do; those with free slots come first."""
        workers = self._models.get(model)
        if not workers:
            return None
        if len(workers) == 1:
            worker = next(iter(workers.values()))
            return worker if worker.ready and worker.id not in exclude else None
        ready = [w for w in workers.values() if w.ready and w.id not in exclude]
        pool = [w for w in ready if w.free > 0] or ready
        if len(pool) <= 1:
            return pool[0] if pool else None
        one, other = random.sample(pool, 2)
        return one if one.outstanding <= other.outstanding else other

    def timeout_s(self, model: str) -> float | None:
        """The model's limit to the first byte, as any of its workers says it."""
        workers = self._models.get(model)
        return next(iter(workers.values())).beat.timeout_ms / 1000 if workers else None

    def wait(self, model: str, waiter: Waiter) -> None:
        """Call ``waiter`` whenever a ready worker of the model is heard, until `leave`."""
        self._waiters.setdefault(model, set()).add(waiter)

    def leave(self, model: str, waiter: Waiter) -> None:
        """End `wait`."""
        waiters = self._waiters.get(model)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[model]

    def wake(self, model: str) -> None:
        """Call the model's waiters."""
        for waiter in list(self._waiters.get(model, ())):
            waiter()

    def wake_all(self) -> None:
        """Call every waiter."""
        for model in list(self._waiters):
            self.wake(model)

    def beats(self) -> list[Heartbeat]:
        """The last heartbeat of every living worker of every model."""
        return [worker.beat for workers in self._models.values() for worker in workers.values()]

    def models(self) -> list[ModelInfo]:
        """Configured and registered models and those of living workers, by name."""
        names = self._configured | self._registered | self._models.keys()
        return [self.info(name) for name in sorted(names) if name not in self._removed or name in self._known]

    def info(self, model: str) -> ModelInfo:
        """One model as its workers show it; state ``unavailable`` when none lives."""
        workers = list(self._models.get(model, {}).values())
        if not workers:
            return ModelInfo(name=model, state="unavailable", workers=0, ready_workers=0)
        best = next((w for w in workers if w.ready), workers[0])
        return ModelInfo(
            name=model,
            state=best.beat.state,
            workers=len(workers),
            ready_workers=sum(w.ready for w in workers),
            reason=next((w.beat.reason for w in workers if w.beat.reason), ""),
            digest=best.beat.digest,
            engine=best.beat.engine,
            created=best.beat.created,
            memory_bytes=sum(w.beat.memory_bytes for w in workers),
            gpu_memory_bytes=sum(w.beat.gpu_memory_bytes for w in workers),
            free=sum(w.beat.free for w in workers if w.ready),
            queued=sum(w.beat.queued for w in workers),
            running=sum(w.beat.running for w in workers),
        )
