"""One test under watch on this replica: its evaluator, how far it has read, and whether this replica leads it."""

from dataclasses import dataclass, field
from typing import Any

from schemas.v1.events import ActionRequested, RollbackRequested
from schemas.v1.experiment import Experiment
from services.monitor.adapters.nats_state import Checkpoint
from services.monitor.adapters.nats_windows import WindowMessage
from services.monitor.domain import actions
from services.monitor.domain.evaluator import StateError, TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.monitor.domain.findings import Finding


@dataclass
class Track:
    """State of one test; ``joined`` once its evidence has caught up with the stream.

    ``blind`` counts ticks in a row that could not be evaluated at all; ``leads_until`` is on the monotonic clock.
    ``published`` are ids of alerts that were made known, and of actions that were carried out.
    """

    evaluator: TestEvaluator
    ticker: Ticker
    joined: bool = False
    blind: int = 0
    leads_until: float = 0.0
    counter: int = 0
    published: set[str] = field(default_factory=set)
    order: RollbackRequested | None = None
    saved_at: float = 0.0
    leased_at: float = 0.0
    ordered_at: float = 0.0
    action: ActionRequested | None = None
    acted_at: float = 0.0

    @classmethod
    def new(cls, experiment: Experiment, after: int) -> "Track":
        """A test without history: its windows come after sequence ``after``."""
        return cls(TestEvaluator(experiment), Ticker(experiment.test_id, after))

    @classmethod
    def restored(cls, experiment: Experiment, checkpoint: Checkpoint) -> "Track":
        """A test as of its checkpoint. Raises StateError or ValueError when it cannot be used."""
        try:
            evaluator = TestEvaluator.from_dict(experiment, checkpoint.state)
            order = None if checkpoint.order is None else RollbackRequested.model_validate(checkpoint.order)
            action = None if checkpoint.action is None else ActionRequested.model_validate(checkpoint.action)
        except (KeyError, TypeError, AttributeError, IndexError) as exc:
            raise StateError(f"the checkpoint cannot be read: {exc!r}") from exc
        return cls(evaluator, Ticker(experiment.test_id, checkpoint.sequence), order=order, action=action)

    @property
    def experiment(self) -> Experiment:
        """The test as its routers last wrote it."""
        return self.evaluator.experiment

    def leads(self, now: float) -> bool:
        """Whether this replica acts for the test."""
        return now < self.leads_until

    def take(self, message: WindowMessage) -> list[Finding]:
        """Take in a window; what the tick that it closes newly shows."""
        tick = self.ticker.add(message.sequence, message.time_ms, message.window)
        return [] if tick is None else self.evaluator.tick(tick)

    def checkpoint(self, created: str) -> Checkpoint:
        """State as of the last closed tick."""
        order: dict[str, Any] | None = None if self.order is None else self.order.model_dump(mode="json")
        action: dict[str, Any] | None = None if self.action is None else self.action.model_dump(mode="json")
        return Checkpoint(created, self.evaluator.sequence, self.evaluator.to_dict(), order, action)

    def note_done(self) -> None:
        """Note which actions the test shows to have been carried out, so that none is asked for twice."""
        self.published |= actions.carried_out(self.evaluator, self.action)

    def as_of_now(self) -> TestEvaluator:
        """A copy of the evaluator that has also taken in the tick that is still open."""
        copy = TestEvaluator.from_dict(self.experiment, self.evaluator.to_dict())
        tick = self.ticker.open_tick()
        if tick is not None:
            copy.tick(tick)
        return copy
