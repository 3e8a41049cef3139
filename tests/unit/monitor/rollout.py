"""A whole rollout without a bus: synthetic traffic at the split of the moment, the monitor's domain, the router's rules."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from schemas.v1.common import TestStatus
from schemas.v1.events import ActionRequested
from schemas.v1.experiment import Experiment, OutboxEvent
from schemas.v1.record import TestChange
from schemas.v1.windows import Window
from services.monitor.domain import actions, alerts
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Ticker
from services.router.domain.commands import Advance, Approve, Descend, Hold, Resume, Retry, Rollback, StepDown
from services.router.domain.descending import under_way, wanted_bp
from services.router.domain.experiment import apply
from tests.unit.monitor.synthetic import START_S, TEST, Traffic, experiment, stream

COMMANDS = {"advance": Advance, "pause": Hold, "step_down": StepDown, "retry": Retry}


@dataclass
class Rollout:
    """``script`` may change traffic or test before a second's windows; ``every`` restores a checkpoint so often."""

    test: Experiment
    traffic: Traffic
    active: bool = True
    every: int = 0
    script: Callable[["Rollout", int], None] | None = None
    messages: list[tuple[int, int, Window]] = field(default_factory=list)
    events: list[OutboxEvent] = field(default_factory=list)
    asked: list[ActionRequested] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    second: int = 0

    def __post_init__(self) -> None:
        self.evaluator = TestEvaluator(self.test)
        self.ticker = Ticker(TEST)

    def run(self, seconds: int) -> "Rollout":
        for _ in range(seconds):
            if not self.evaluator.experiment.live:
                break
            if self.script is not None:
                self.script(self, self.second)
            self.traffic.share_bp = self.evaluator.experiment.share_bp
            for message in stream(self.traffic, 1, self.second):
                self.messages.append(message)
                tick = self.ticker.add(*message)
                if tick is not None:
                    self.evaluator.tick(tick)
                    self._restart()
                    self._act()
            self.second += 1
        return self

    def command(self, command: Any) -> None:
        """As a router carries it out; a reduction is carried out at once."""
        now_ms = 1000 * (START_S + self.second)
        state, events = apply(self.evaluator.experiment, command, now_ms)
        self.events += events
        self.evaluator.experiment = state
        descent = under_way(state)
        if events and descent is not None:
            self.command(Descend(TEST, state.version, wanted_bp(state, descent)))

    def approve(self) -> None:
        self.command(Approve(TEST, actor="ops"))

    def resume(self) -> None:
        self.command(Resume(TEST, actor="ops"))

    def changes(self) -> list[TestChange]:
        return [
            TestChange(
                id=e.id, at_ms=e.at_ms, kind=e.type.removeprefix("test."), share_bp=e.data["share_bp"],
                status=e.data["status"],
            )
            for e in self.events
        ]

    def story(self) -> list[tuple[str, int]]:
        """(kind, share in bp) of every event."""
        return [(change.kind, change.share_bp or 0) for change in self.changes()]

    def _restart(self) -> None:
        if self.every and self.evaluator.ticks % self.every == 0:
            self.evaluator = TestEvaluator.from_dict(self.evaluator.experiment, self.evaluator.to_dict())

    def _act(self) -> None:
        evaluator = self.evaluator
        self.done |= actions.carried_out(evaluator, self.asked[-1] if self.asked else None)
        fired = evaluator.fired
        if fired is not None and alerts.acts(evaluator.experiment, monitoring_active=self.active):
            _, request = alerts.rollback_request(evaluator, fired)
            self.command(Rollback(TEST, order=request.order))
            return
        wanted = actions.wanted(evaluator, self.done, monitoring_active=self.active)
        if wanted is not None:
            self.asked.append(wanted)
            self.command(COMMANDS[wanted.action](TEST, order=wanted.order))


def ramped(*shares_bp: int, soak_minutes: float = 0.1, min_requests: int = 20, **fields: Any) -> Experiment:
    """A test with a ramp through these shares."""
    gate = fields.pop("gate", "statistical")
    steps = [
        {"share_bp": share, "soak_minutes": soak_minutes, "min_requests": min_requests, "gate": gate}
        for share in shares_bp
    ]
    ramp = {"steps": steps, "since_ms": START_S * 1000}
    return experiment(**({"share_bp": shares_bp[0], "ramp": ramp, "status": TestStatus.RUNNING} | fields))
