"""Any sequence of commands: versions rise by one, ids are unique, terminal states are final, slots match the share."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.v1.common import LIVE, Decision
from schemas.v1.experiment import Experiment, RollbackOrder
from services.router.domain import commands as c
from services.router.domain import slots
from services.router.domain.experiment import apply
from services.router.domain.refusals import Refused

shares = st.integers(0, 10_000)


class Lifetime(RuleBasedStateMachine):
    @initialize(share=shares, delay=st.sampled_from([0, 1000]))
    def begin(self, share: int, delay: int) -> None:
        self.now = 1_000_000
        self.tests = 0
        self.ids: list[str] = []
        self.refused: list[Refused] = []
        self.state: Experiment | None = None
        self.start(share, delay)

    def send(self, command: c.Command) -> None:
        before = self.state
        self.now += 1
        try:
            new, events = apply(before, command, self.now)
        except Refused as exc:
            self.refused.append(exc)
            return
        frozen = before.model_dump_json() if before else None
        if new is before:
            assert events == []
            return
        if before is not None:
            assert before.model_dump_json() == frozen
            if new.test_id == before.test_id:
                assert before.live
                assert new.version == before.version + 1
            else:
                assert not before.live
                assert new.version == 1
        for n, event in enumerate(events, 1):
            assert event.id == f"{new.test_id}.{new.version}.{n}"
        self.ids += [event.id for event in events]
        assert [event.id for event in new.outbox] == self.ids
        self.state = Experiment.model_validate_json(new.model_dump_json())
        assert self.state == new

    @rule(share=shares, delay=st.sampled_from([0, 1000]))
    def start(self, share: int, delay: int) -> None:
        self.tests += 1
        self.send(
            c.Start(f"t{self.tests}", "m", "n", share, 60, "salt", "ops", starts_ms=self.now + delay if delay else None)
        )

    def current(self) -> str:
        assert self.state is not None
        return self.state.test_id

    @rule()
    def launch(self) -> None:
        self.send(c.Launch(self.current()))

    @rule(share=shares)
    def split(self, share: int) -> None:
        self.send(c.ChangeSplit(self.current(), share, "ops"))

    @rule()
    def pause(self) -> None:
        self.send(c.Pause(self.current(), "ops"))

    @rule()
    def resume(self) -> None:
        self.send(c.Resume(self.current(), "ops"))

    @rule()
    def begin_stop(self) -> None:
        self.send(c.BeginStop(self.current(), "enough", "ops"))

    @rule(decision=st.sampled_from(Decision))
    def complete(self, decision: Decision) -> None:
        self.send(c.Complete(self.current(), decision, "because"))

    def order(self) -> RollbackOrder:
        return RollbackOrder(rule="r", reason="bad", actor="monitor", at_ms=self.now)

    @rule()
    def rollback(self) -> None:
        self.send(c.Rollback(self.current(), self.order()))

    @rule()
    def begin_rollback(self) -> None:
        self.send(c.BeginRollback(self.current(), self.order()))

    @rule(stale=st.booleans())
    def step(self, stale: bool) -> None:
        assert self.state is not None
        self.send(c.StepRollback(self.current(), self.state.version - stale))

    @rule()
    def fail(self) -> None:
        self.send(c.Fail(self.current(), "broken", "system"))

    @invariant()
    def holds(self) -> None:
        state = getattr(self, "state", None)
        if state is None:
            return
        assert slots.size(state.slots) == state.share_bp
        assert (state.status in LIVE) == (state.result is None) == (state.ended_ms is None)
        assert state.stopping is None or state.live
        assert len(set(self.ids)) == len(self.ids)
        assert all(refused.status in {404, 409} and refused.message for refused in self.refused)


TestLifetime = Lifetime.TestCase
TestLifetime.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
