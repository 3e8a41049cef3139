"""What a worker does about a model, step by step, whatever it has and whatever is wanted."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.inference.domain.lifecycle import LOADABLE, ON_THE_WAY, State, advance, pause_s
from services.inference.domain.registry import Held, Step, Wanted, decide

specs = st.sampled_from("ab")
generations = st.integers(0, 3)
held = st.builds(Held, specs, generations, st.sampled_from(State))
# What is to take over is being loaded, or has failed at it.
beside = st.one_of(st.none(), st.builds(Held, specs, generations, st.sampled_from([*ON_THE_WAY, State.FAILED])))
wishes = st.builds(
    Wanted, st.sampled_from(["loaded", "unloaded", "removed"]), specs, generations, st.booleans(), st.booleans(), st.booleans()
)
MOST_STEPS = 8


class Worker:
    """What the steps do, with loads that end as ``works`` says."""

    def __init__(self, present: Held, following: Held | None, *, works: bool = True) -> None:
        self.present: Held | None = present
        self.following = following
        self.works = works
        self.served = [present.state is State.READY]
        self.loads = 0

    def take(self, step: Step, wanted: Wanted) -> None:
        present = self.present
        assert present is not None
        if step is Step.ADOPT:
            assert present.spec == wanted.spec
            self.present = replace(present, generation=wanted.generation)
        elif step is Step.LOAD:
            assert present.state in LOADABLE
            self.loads += 1
            self.present = Held(wanted.spec, wanted.generation, State.VERIFYING)
        elif step is Step.LOAD_NEXT:
            assert present.state is State.READY
            assert self.following is None
            self.loads += 1
            self.following = Held(wanted.spec, wanted.generation, State.VERIFYING)
        elif step is Step.DROP_NEXT:
            assert self.following is not None
            self.following = None
        elif step is Step.ABANDON:
            assert present.state in ON_THE_WAY
            self.present = replace(present, state=advance(present.state, State.UNLOADED))
        elif step is Step.UNLOAD:
            self.present = replace(present, state=advance(present.state, State.DRAINING))
        elif step is Step.REST:
            state = present.state if present.state is State.UNLOADED else advance(present.state, State.UNLOADED)
            self.present = replace(present, state=state, generation=wanted.generation)
        elif step is Step.FORGET:
            self.present = None
        self.note()

    def time_passes(self) -> bool:
        """What goes on comes to its end; whether anything did."""
        present, following = self.present, self.following
        assert present is not None
        if present.state is State.DRAINING:
            self.present = replace(present, state=State.UNLOADED)
        elif following is not None and following.state in ON_THE_WAY:
            if self.works:
                self.present, self.following = replace(following, state=State.READY), None
            else:
                self.following = replace(following, state=State.FAILED)
        elif present.state in ON_THE_WAY:
            self.present = replace(present, state=State.READY if self.works else State.FAILED)
        else:
            return False
        self.note()
        return True

    def note(self) -> None:
        self.served.append(self.present is not None and self.present.state is State.READY)

    def follow(self, wanted: Wanted) -> None:
        """Steps and time until nothing more happens."""
        for _ in range(4 * MOST_STEPS):
            if self.present is None:
                return
            step = decide(self.present, self.following, wanted)
            if step is not Step.NOTHING:
                self.take(step, wanted)
            elif not self.time_passes():
                return
        raise AssertionError(f"never done with {wanted}: {self.present}, {self.following}")


def done(worker: Worker, wanted: Wanted) -> bool:
    if wanted.desired == "removed":
        return worker.present is None
    assert worker.present is not None
    if wanted.desired == "unloaded":
        return (worker.present.state, worker.present.generation) == (State.UNLOADED, wanted.generation)
    return worker.present == Held(wanted.spec, wanted.generation, State.READY)


@given(held, beside, wishes)
def test_what_is_wanted_comes_about_when_loads_succeed(present: Held, following: Held | None, wanted: Wanted) -> None:
    # What is of this very generation and failed has used its tries up.
    used_up = State.FAILED in {h.state for h in (present, following) if h and (h.spec, h.generation) == (wanted.spec, wanted.generation)}
    waits = wanted.rolling and not wanted.turn
    worker = Worker(present, following)
    worker.follow(wanted)
    if wanted.desired == "loaded" and (used_up or waits):
        assert worker.present is not None
        return
    assert done(worker, wanted), (worker.present, worker.following)
    assert worker.following is None


@given(held, beside, wishes)
def test_failing_loads_end_too_and_are_not_begun_again(present: Held, following: Held | None, wanted: Wanted) -> None:
    worker = Worker(present, following, works=False)
    worker.follow(wanted)
    assert worker.loads <= 2
    again = worker.loads
    if worker.present is not None:
        worker.follow(wanted)
    assert worker.loads == again


@given(held, wishes, st.booleans())
def test_what_serves_goes_on_until_the_next_one_does(present: Held, wanted: Wanted, works: bool) -> None:
    present = replace(present, state=State.READY)
    worker = Worker(present, None, works=works)
    worker.follow(wanted)
    if wanted.desired == "loaded" and not (wanted.rolling and wanted.turn):
        assert all(worker.served), "no moment without an engine"


@given(held, wishes)
def test_the_same_spec_is_loaded_anew_only_on_order(present: Held, wanted: Wanted) -> None:
    present = replace(present, state=State.READY)
    wanted = replace(wanted, desired="loaded", spec=present.spec)
    worker = Worker(present, None)
    worker.follow(wanted)
    anew = wanted.reload and present.generation < wanted.generation and not (wanted.rolling and not wanted.turn)
    assert worker.loads == int(anew)


@given(st.integers(1, 100), st.floats(0, 1))
def test_pauses_grow_to_a_minute_and_differ(failed: int, jitter: float) -> None:
    longest = min(2.0 ** (failed - 1), 60.0)
    assert longest / 2 <= pause_s(failed, jitter) <= longest
