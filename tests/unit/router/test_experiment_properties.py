"""Any sequence of commands: versions rise by one, ids are unique, terminal states are final, slots match the share.

Ramps only go up by their own steps, through every gate; whatever the monitor decided acts once, on its version alone.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from schemas.v1.common import LIVE, Decision, TestStatus
from schemas.v1.experiment import SLOTS, Experiment, RampStep, RetryPolicy, RollbackOrder
from services.router.domain import commands as c
from services.router.domain import slots
from services.router.domain.descending import under_way, wanted_bp
from services.router.domain.experiment import apply
from services.router.domain.refusals import Refused

shares = st.integers(0, 10_000)
ramps = st.sets(st.integers(1, 10_000), max_size=4).map(sorted)
gates = st.lists(st.sampled_from(["none", "statistical", "manual"]), min_size=4, max_size=4)
DECIDED = (c.Advance, c.Hold, c.StepDown, c.Retry)


class Lifetime(RuleBasedStateMachine):
    @initialize(share=shares, delay=st.sampled_from([0, 1000]), ramp=ramps, gate=gates)
    def begin(self, share: int, delay: int, ramp: list[int], gate: list[str]) -> None:
        self.now = 1_000_000
        self.tests = 0
        self.ids: list[str] = []
        self.refused: list[Refused] = []
        self.state: Experiment | None = None
        self.start(share, delay, ramp, gate)

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
        assert len(events) <= 1
        if before is not None:
            assert before.model_dump_json() == frozen
            if new.test_id == before.test_id:
                assert before.live
                assert new.version == before.version + 1
                assert new.live or not new.descent
                self.moved(before, new)
            else:
                assert not before.live
                assert new.version == 1
        for n, event in enumerate(events, 1):
            assert event.id == f"{new.test_id}.{new.version}.{n}"
        self.ids += [event.id for event in events]
        assert [event.id for event in new.outbox] == self.ids
        self.state = Experiment.model_validate_json(new.model_dump_json())
        assert self.state == new

    def moved(self, before: Experiment, new: Experiment) -> None:
        """Units of a growing canary come from A, those of a shrinking one go there, and no others move."""
        (less, more) = (before, new) if new.share_bp >= before.share_bp else (new, before)
        held = {slot for start, end in more.slots for slot in range(start, end)}
        assert all(slot in held for start, end in less.slots for slot in range(start, end))
        if before.ramp and new.ramp and new.ramp.step > before.ramp.step:
            climbed = new.ramp.step == before.ramp.step + 1
            retried = before.setback is not None and new.ramp.step == before.setback.from_step
            assert climbed or retried
            if climbed and not retried:
                gate = before.ramp.steps[before.ramp.step].gate
                assert gate != "manual" or before.ramp.approved >= before.ramp.step
                assert not before.ramp.held

    @rule(share=shares, delay=st.sampled_from([0, 1000]), ramp=ramps, gate=gates)
    def start(self, share: int, delay: int, ramp: list[int], gate: list[str]) -> None:
        self.tests += 1
        steps = tuple(RampStep(share_bp=bp, gate=g) for bp, g in zip(ramp, gate, strict=False))
        self.send(
            c.Start(
                f"t{self.tests}", "m", "n", ramp[0] if ramp else share, 60, "salt", "ops", ramp=steps,
                retry=RetryPolicy(max_retries=self.tests % 3), starts_ms=self.now + delay if delay else None,
            )
        )  # fmt: skip

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

    @rule(stale=st.booleans(), part=st.floats(0, 1))
    def descend(self, stale: bool, part: float) -> None:
        assert self.state is not None
        descent = under_way(self.state)
        wanted = wanted_bp(self.state, descent) if descent else 0
        share = wanted + round(part * (self.state.share_bp - wanted))
        self.send(c.Descend(self.current(), self.state.version - stale, share))

    @rule(stale=st.booleans(), why=st.sampled_from(["until noon", "until one"]))
    def wait(self, stale: bool, why: str) -> None:
        assert self.state is not None
        self.send(c.Wait(self.current(), self.state.version - stale, why))

    @rule()
    def approve(self) -> None:
        self.send(c.Approve(self.current(), "ops"))

    @rule(kind=st.sampled_from(DECIDED), stale=st.booleans())
    def decided(self, kind: type, stale: bool) -> None:
        assert self.state is not None
        before = self.state
        order = RollbackOrder(rule="r", reason="x", actor="monitor", at_ms=1, decided_on=before.version - stale)
        self.send(kind(before.test_id, order))
        if stale or before.status is not TestStatus.RUNNING or before.stopping is not None:
            assert self.state is before
        once = self.state
        self.send(kind(before.test_id, order))
        assert self.state is once

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
        assert 0 <= state.share_bp <= SLOTS
        assert state.stopping is None or state.live
        if state.ramp is not None:
            assert state.ramp.step < len(state.ramp.steps)
        if state.descent is not None:
            assert state.status is TestStatus.ROLLING_BACK or state.descent.target_bp < state.share_bp
        if state.setback is not None:
            assert state.setback.from_bp >= state.share_bp or state.setback.retry_at_ms is None
        assert len(set(self.ids)) == len(self.ids)
        assert all(refused.status in {404, 409} and refused.message for refused in self.refused)


TestLifetime = Lifetime.TestCase
TestLifetime.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
