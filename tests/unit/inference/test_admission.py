"""Slots are never lost nor given twice, and callers take turns."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.inference.domain.admission import Admission


def test_callers_take_turns() -> None:
    admission: Admission[str] = Admission(1, 10)
    assert admission.arrive("a0", "a").admitted
    for n in range(1, 4):
        assert admission.arrive(f"a{n}", "a").queued
    assert admission.arrive("b1", "b").queued
    assert admission.arrive("b2", "b").queued
    order = [admission.leave(0.1) for _ in range(6)]
    assert order == ["a1", "b1", "a2", "b2", "a3", None]
    assert admission.running == 0


def test_full_queue_turns_the_greediest_away() -> None:
    admission: Admission[str] = Admission(1, 2)
    for n in range(3):
        admission.arrive(f"a{n}", "a")
    refused = admission.arrive("a3", "a")
    assert not refused.admitted
    assert not refused.queued
    other = admission.arrive("b0", "b")
    assert (other.queued, other.evicted) == (True, "a2")
    third = admission.arrive("c0", "c")
    assert not third.queued, "taking the place of one who has one would only swap them"
    assert admission.queued == 2


def test_members_of_a_caller_take_turns_for_its_own() -> None:
    admission: Admission[str] = Admission(1, 10)
    admission.arrive("x", "k/u")
    for ticket, caller in (("u1", "k/u"), ("u2", "k/u"), ("u3", "k/u"), ("v1", "k/v"), ("n1", "k"), ("o1", "other"), ("o2", "other/w")):
        assert admission.arrive(ticket, caller).queued
    assert [admission.leave(0.1) for _ in range(8)] == ["u1", "o1", "v1", "o2", "n1", "u2", "u3", None]


def test_in_a_full_queue_a_member_takes_a_place_of_its_own_callers_greediest() -> None:
    admission: Admission[str] = Admission(1, 4)
    admission.arrive("x", "k/u")
    for n in range(4):
        assert admission.arrive(f"u{n}", "k/u").queued
    assert admission.arrive("v0", "k/v").evicted == "u3"
    assert admission.arrive("v1", "k/v").evicted == "u2"
    refused = admission.arrive("v2", "k/v")
    assert (refused.queued, refused.evicted) == (False, None), "two each: a swap would change nothing"
    assert admission.arrive("o0", "other").evicted == "u1"
    assert admission.queued == 4
    assert [admission.leave(0.1) for _ in range(5)] == ["u0", "o0", "v0", "v1", None]


def test_no_queue_at_all() -> None:
    admission: Admission[int] = Admission(1, 0)
    assert admission.arrive(1, "a").admitted
    assert not admission.arrive(2, "b").queued


def test_retry_after_follows_the_rate() -> None:
    admission: Admission[int] = Admission(2, 100)
    assert admission.retry_after() == 1
    for n in range(22):
        admission.arrive(n, "a")
    admission.leave(5.0)
    assert admission.retry_after() == 50
    for _ in range(60):
        admission.leave(500.0)
    assert admission.retry_after() == 60


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.admission: Admission[int] = Admission(2, 4)
        self.running: set[int] = set()
        self.waiting: dict[int, str] = {}
        self.n = 0

    @rule(caller=st.sampled_from(["a", "a/x", "a/y", "b", "c/x", "c/y"]))
    def arrive(self, caller: str) -> None:
        self.n += 1
        arrival = self.admission.arrive(self.n, caller)
        if arrival.admitted:
            self.running.add(self.n)
        elif arrival.queued:
            self.waiting[self.n] = caller
        if arrival.evicted is not None:
            assert self.waiting.pop(arrival.evicted) != caller

    @rule(pick=st.integers(0, 100))
    def leave(self, pick: int) -> None:
        if not self.running:
            return
        self.running.discard(sorted(self.running)[pick % len(self.running)])
        following = self.admission.leave(0.5)
        if following is not None:
            del self.waiting[following]
            self.running.add(following)

    @rule(pick=st.integers(0, 100))
    def withdraw(self, pick: int) -> None:
        if self.waiting:
            ticket = sorted(self.waiting)[pick % len(self.waiting)]
            caller = self.waiting.pop(ticket)
            assert self.admission.withdraw(ticket, caller)
            assert not self.admission.withdraw(ticket, caller)

    @invariant()
    def agrees(self) -> None:
        assert self.admission.running == len(self.running) <= 2
        assert self.admission.queued == len(self.waiting) <= 4
        assert not self.waiting or self.admission.free == 0


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=50, stateful_step_count=40)
