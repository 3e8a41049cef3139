"""What the router's two halves ask of each other: the control side and the request path.

The request path never awaits any of these; they read memory. `app.py` hands each half the other's.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from schemas.v1.control import FeedbackCommand
from schemas.v1.experiment import Experiment, RollbackOrder
from schemas.v1.inference import Heartbeat
from services.router.domain.capacity import Load


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as the workers' heartbeats and the configuration show it.

    ``reason``: why a worker that is not ready failed, empty when none did.
    """

    name: str
    state: str
    workers: int
    ready_workers: int
    reason: str = ""
    digest: str = ""
    engine: str = ""
    created: int = 0
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    free: int = 0
    queued: int = 0
    running: int = 0


class Experiments(Protocol):
    """The control side's mirror of the KV bucket `experiments`."""

    def current(self, model_a: str) -> Experiment | None:
        """The live experiment whose ``model_a`` this is, or None. Called for every request: a dict look-up."""

    def by_id(self, test_id: str) -> Experiment | None:
        """The experiment of that id, live or the last one of its key."""

    def live(self) -> list[Experiment]:
        """All live experiments, oldest start first."""

    def request_rollback(self, test_id: str, order: RollbackOrder) -> None:
        """Ask the control side to roll back (from breaker or lapsed lease); returns at once, retries by itself."""


class Salts(Protocol):
    """The control side's mirror of the tests' unit salts."""

    def key(self, version: int) -> bytes | None:
        """What the units of a test of this `unit_salt_version` are hashed under; None while its salt is not here."""


class Erasures(Protocol):
    """The control side's mirror of the units that were erased."""

    def of(self, test_id: str) -> Collection[int]:
        """Unit hashes of a test that are nobody's any more. A dict look-up."""


class RequestPath(Protocol):
    """What control handlers need to know of, or do to, the request path."""

    def models(self) -> list[ModelInfo]:
        """Every model that a worker or the configuration knows."""

    def beats(self) -> list[Heartbeat]:
        """The last heartbeat of every living worker of every model."""

    def connected_for(self) -> float:
        """Seconds since when heartbeats can have been heard without a break."""

    def block(self, test_id: str) -> None:
        """Serve the canary of this test nothing from now on, before any compare-and-set."""

    def effective_share_bp(self, experiment: Experiment) -> int:
        """The share this router really applies now (0 while breaker, lease or block hold the canary)."""

    def load(self, model: str) -> Load:
        """What the model carries now and has shown that it can carry."""

    def in_flight(self, test_id: str) -> dict[str, int]:
        """Requests of a test that this router has in flight, by variant."""

    async def flush_facts(self, timeout_s: float) -> dict[str, dict[int, int]]:
        """Publish every pending fact; the highest acknowledged batch number by router epoch and partition."""

    async def advance_facts(self, partition: int, timeout_s: float) -> bool:
        """Publish what waits of a partition, and something behind it; whether METRICS has it in time."""

    def erase(self, test_id: str, unit: int) -> None:
        """Requests of this unit in this test are nobody's from now on, those under way included."""

    async def feedback(self, said: FeedbackCommand) -> str:
        """Record what a client says about a response; the test's id. Raises Refused."""

    def degraded(self) -> list[str]:
        """What does not work now, for `/ready` and `status` (``bus``, ``facts`` ...)."""
