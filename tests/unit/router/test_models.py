"""The registry's transitions and what routers decide about models by themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import TestStatus
from schemas.v1.experiment import Experiment
from schemas.v1.inference import Heartbeat
from schemas.v1.models import ModelEntry, ModelNeed, ModelPlan
from services.router.domain import models
from services.router.domain.keeping import (
    EndTest,
    Field,
    GiveTurn,
    GoBack,
    LetGo,
    Room,
    Settle,
    TakeBack,
    reached,
    refusal,
    room,
    steps,
)
from services.router.domain.models import KEEPER, Claim, Load, Register, Remove, Seen, Unload
from services.router.domain.refusals import Conflict, NotFound, Refused

SPEC = {"name": "m", "engine": "vllm", "path": "/models/m"}
OTHER = {**SPEC, "path": "/models/n"}
NOBODY = Seen()


def beat(worker: str = "w1", state: str = "ready", generation: int = 0, **fields: object) -> Heartbeat:
    defaults: dict = {"model": "m", "engine": "vllm", "pool": "default", "idle_s": 0.0}
    return Heartbeat(worker=worker, state=state, generation=generation, **{**defaults, **fields})


def entry(**fields: object) -> ModelEntry:
    return ModelEntry(**{"name": "m", "spec": SPEC, "stage": "settled", "actor": "ops", "at_ms": 1000, **fields})


def experiment(model_a: str = "m", model_b: str = "x", status: TestStatus = TestStatus.RUNNING, created_ms: int = 0) -> Experiment:
    return Experiment(
        test_id="ab_test_1", version=1, status=status, model_a=model_a, model_b=model_b, share_bp=1, salt="s",
        created_ms=created_ms, duration_minutes=1,
    )  # fmt: skip


def claimed(before: ModelEntry | None, command: models.Command, seen: Seen = NOBODY) -> ModelEntry:
    made = models.claim(before, command, seen, 2000)
    assert made.entry is not None
    assert made.entry.stage == "claimed"
    return made.entry


def world(*beats: Heartbeat, of: ModelEntry | None = None, tests: tuple[Experiment, ...] = (), now: int = 2000, **more: object) -> Field:
    entries = {of.name: of} if of else {}
    return Field(entries, list(beats), list(tests), now, **more)


def refused(before: ModelEntry | None, command: models.Command, seen: Seen = NOBODY) -> Refused:
    with pytest.raises(Refused) as caught:
        models.claim(before, command, seen, 2000)
    return caught.value


def test_the_registry_holds_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_MODELS", 2)
    there = {name: entry(name=name, desired=desired) for name, desired in (("a", "loaded"), ("b", "removed"))}
    models.refuse_more("c", there)
    there["b"] = entry(name="b", desired="unloaded")
    models.refuse_more("a", there)
    with pytest.raises(Conflict, match="there are 2 registered models, as many as there may be") as caught:
        models.refuse_more("c", there)
    assert caught.value.code == "too_many_models"


def test_a_new_model_is_claimed_confirmed_and_settled() -> None:
    new = claimed(None, Register("m", SPEC, "ops"))
    assert (new.generation, new.spec, new.desired, new.before, new.has_previous) == (1, SPEC, "loaded", None, False)
    assert new.outbox == []
    changing = models.confirm(new, new, 3000)
    assert (changing.stage, changing.at_ms, [e.stage for e in changing.outbox]) == ("changing", 3000, ["changing"])
    done = models.settle(changing, 4000)
    assert (done.stage, [e.stage for e in done.outbox]) == ("settled", ["changing", "settled"])
    assert models.without_events(done, changing.outbox).outbox == done.outbox[1:]
    assert models.without_events(done, []) is done


def test_a_claim_taken_back_leaves_what_was_there() -> None:
    before = entry(generation=4, reason="because")
    new = claimed(before, Unload("m", "ops"), Seen([beat()]))
    assert models.take_back(new, new) == before
    assert models.take_back(claimed(None, Register("m", SPEC, "ops")), claimed(None, Register("m", SPEC, "ops"))) is None
    elsewhere = entry(generation=9)
    assert models.take_back(elsewhere, new) is elsewhere
    assert models.take_back(None, new) is None
    with pytest.raises(Conflict, match="taken back"):
        models.confirm(before, new, 3000)
    with pytest.raises(Conflict, match="taken back"):
        models.confirm(None, new, 3000)


def test_a_name_that_there_is_needs_replace() -> None:
    for before, seen in ((entry(), NOBODY), (None, Seen([beat()])), (None, Seen(configured=True))):
        assert refused(before, Register("m", OTHER, "ops"), seen).code == "model_exists"
        made = models.claim(before, Register("m", OTHER, "ops", replace=True), seen, 2000)
        assert made.status == "replacing"
        assert made.guarded
    assert models.claim(entry(desired="removed"), Register("m", OTHER, "ops"), NOBODY, 2000).status == "registered"
    assert models.claim(None, Register("m", OTHER, "ops", replace=True), NOBODY, 2000).status == "registered"


def test_the_same_again_changes_nothing_unless_it_failed() -> None:
    again = Register("m", SPEC, "ops", replace=True)
    assert models.claim(entry(generation=3), again, Seen([beat(generation=3)]), 2000) == Claim(None, "unchanged", 3)
    assert claimed(entry(generation=3), again, Seen([beat(generation=3), beat("w2", "failed", 3)])).generation == 4
    assert models.claim(entry(), Load("m", "ops"), NOBODY, 2000).status == "unchanged"
    assert claimed(entry(), Load("m", "ops"), Seen([beat(state="failed", generation=1)])).generation == 2
    assert models.claim(None, Load("m", "ops"), Seen([beat()]), 2000) == Claim(None, "unchanged", 0)
    assert models.claim(None, Load("m", "ops"), Seen([beat(state="registered")]), 2000).status == "loading"


def test_what_served_is_kept_to_go_back_to() -> None:
    swap = claimed(entry(generation=3), Register("m", OTHER, "ops", replace=True), Seen([beat(generation=3)]))
    assert (swap.previous, swap.has_previous, swap.generation) == (SPEC, True, 4)
    changing = models.confirm(swap, swap, 3000)
    third = claimed(changing, Register("m", {**SPEC, "path": "/models/o"}, "ops", replace=True), Seen([beat(generation=3)]))
    assert (third.previous, third.has_previous) == (SPEC, True), "not the one that never served"
    file = claimed(None, Register("m", OTHER, "ops", replace=True), Seen([beat()]))
    assert (file.previous, file.has_previous) == (None, True)
    nobody = claimed(entry(), Register("m", OTHER, "ops", replace=True), Seen([beat(state="failed", generation=1)]))
    assert not nobody.has_previous
    back = models.go_back(changing, "no such file", 5000)
    assert (back.spec, back.generation, back.stage, back.actor, back.has_previous) == (SPEC, 5, "changing", KEEPER, False)
    assert [e.generation for e in back.outbox] == [4, 5]


def test_loading_anew_is_guarded_and_loading_is_not() -> None:
    assert not models.claim(None, Load("m", "ops"), Seen([beat(state="unloaded")]), 2000).guarded
    made = models.claim(entry(generation=2), Load("m", "ops", anew=True), Seen([beat(generation=2)]), 2000)
    assert made.guarded
    assert made.entry is not None
    assert (made.entry.reload, made.entry.previous, made.entry.spec) == (True, SPEC, SPEC)
    hurried = claimed(models.confirm(made.entry, made.entry, 1), Unload("m", "ops"), Seen([beat(generation=2)]))
    assert hurried.reload, "workers may never have seen the order before"


def test_an_operators_word_on_what_the_keeper_unloaded_counts() -> None:
    gone = entry(desired="unloaded", actor=KEEPER)
    assert models.claim(gone, Unload("m", KEEPER), NOBODY, 2000).status == "unchanged"
    assert claimed(gone, Unload("m", "ops")).actor == "ops"
    assert models.claim(entry(desired="unloaded"), Unload("m", "ops"), NOBODY, 2000).status == "unchanged"


def test_what_is_not_there_is_404_and_what_a_file_has_cannot_be_removed() -> None:
    for command in (Load("m", "ops"), Unload("m", "ops"), Remove("m", "ops")):
        for before in (None, entry(desired="removed")):
            assert isinstance(refused(before, command), NotFound)
    draining = Seen([beat(generation=3)])
    assert isinstance(refused(entry(desired="removed", generation=4), Load("m", "ops"), draining), NotFound)
    assert refused(None, Remove("m", "ops"), Seen([beat()])).code == "model_configured"
    gone = claimed(entry(), Remove("m", "ops"))
    assert (gone.desired, gone.spec) == ("removed", None)


def test_one_change_at_a_time() -> None:
    new = claimed(None, Register("m", SPEC, "ops"))
    for command in (Register("m", SPEC, "x", replace=True), Load("m", "x"), Unload("m", "x"), Remove("m", "x")):
        assert refused(new, command).code == "model_changing"


def test_pools_and_rolling_are_checked() -> None:
    moved = Register("m", {**SPEC, "pool": "gpu"}, "ops", replace=True)
    assert refused(entry(), moved, Seen([beat()])).code == "pool_changes"
    assert claimed(entry(), moved, Seen([beat(pool="gpu")])).spec == moved.spec
    rolling = Register("m", OTHER, "ops", replace=True, strategy="rolling")
    assert refused(entry(), rolling, Seen([beat()])).code == "cannot_roll"
    assert claimed(entry(), rolling, Seen([beat(), beat("w2")])).strategy == "rolling"
    assert claimed(None, rolling).strategy == "alongside"


@pytest.mark.parametrize("status", [TestStatus.SCHEDULED, TestStatus.RUNNING, TestStatus.PAUSED, TestStatus.ROLLING_BACK])
def test_every_live_test_holds_both_its_models(status: TestStatus) -> None:
    for test in (experiment(status=status), experiment("x", "m", status)):
        with pytest.raises(Conflict, match="stop it first"):
            models.refuse_under("m", [test])
    models.refuse_under("m", [experiment(status=TestStatus.COMPLETED), experiment("x", "y", status)])


def test_tests_start_on_settled_models_only() -> None:
    models.may_start("model_a", "m", None)
    models.may_start("model_a", "m", entry())
    for bad, code in (
        (entry(stage="claimed"), "model_changing"), (entry(stage="changing"), "model_changing"),
        (entry(desired="unloaded"), "model_unloaded"),
    ):  # fmt: skip
        with pytest.raises(Conflict) as caught:
            models.may_start("model_b", "m", bad)
        assert (caught.value.code, caught.value.param) == (code, "model_b")
    models.still("model_a", "m", entry(), entry())
    models.still("model_a", "m", None, None)
    for before, now in ((entry(), entry(generation=2)), (None, entry()), (entry(generation=2), None)):
        with pytest.raises(Conflict):
            models.still("model_a", "m", before, now)


def test_settled_once_every_worker_concerned_is_there() -> None:
    wanted = entry(stage="changing", generation=2)
    assert steps(world(beat(generation=2), beat("w2", generation=1), of=wanted)) == []
    assert steps(world(beat(generation=2), beat("w2", "loading", 2), of=wanted)) == []
    assert steps(world(beat(generation=2), beat("w2", model="other"), of=wanted)) == [], "w2 has to load it too"
    assert steps(world(of=wanted)) == [], "loaded on nobody is not loaded"
    assert steps(world(beat(generation=2), beat("w2", generation=2), of=wanted)) == [Settle("m", 2)]
    pooled = entry(stage="changing", spec={**SPEC, "pool": "default"})
    assert steps(world(beat(generation=1), beat("w2", model="other", pool="gpu"), of=pooled)) == [Settle("m", 1)]
    file = entry(stage="changing", spec=None)
    assert steps(world(beat(generation=1), beat("w2", model="other"), of=file)) == [Settle("m", 1)]


def test_settled_for_unloaded_and_removed() -> None:
    gone = entry(stage="changing", generation=3, desired="unloaded")
    assert steps(world(beat(state="draining", generation=2), of=gone)) == []
    assert steps(world(beat(state="unloaded", generation=2), of=gone)) == [], "from the time before"
    assert steps(world(beat(state="unloaded", generation=3), of=gone)) == [Settle("m", 3)]
    assert steps(world(of=gone)) == [Settle("m", 3)]
    removed = entry(stage="changing", generation=3, desired="removed", spec=None)
    assert steps(world(beat(generation=2), of=removed)) == []
    for kept in ([], [beat(generation=3)], [beat(generation=0)], [beat(model="other")]):
        assert steps(world(*kept, of=removed)) == [Settle("m", 3)]


def test_a_swap_that_fails_goes_back_and_a_first_load_does_not() -> None:
    fails = beat(generation=1, next_state="failed", next_generation=2, next_reason="no such file")
    swap = entry(stage="changing", generation=2, previous=SPEC, has_previous=True)
    (step,) = steps(world(fails, beat("w2", generation=2), of=swap))
    assert isinstance(step, GoBack)
    assert "'w1': no such file" in step.reason
    first = entry(stage="changing", generation=2)
    assert steps(world(beat(state="failed", generation=2), of=first)) == []
    assert steps(world(beat(state="failed", generation=2), beat("w2", generation=2), of=first)) == [Settle("m", 2)]
    before = beat(generation=1, next_state="failed", next_generation=1)
    assert steps(world(before, of=swap)) == [], "what failed before says nothing of this one"


def test_turns_are_given_one_at_a_time_and_only_while_another_serves() -> None:
    roll = entry(stage="changing", generation=2, strategy="rolling", previous=SPEC, has_previous=True)
    one, two, three = beat(generation=1), beat("w2", generation=1), beat("w3", generation=1)
    assert steps(world(one, two, three, of=roll)) == [GiveTurn("m", 2, "w1")]
    mine = models.give_turn(roll, "w1")
    assert steps(world(beat(state="draining", generation=1), two, three, of=mine)) == []
    assert steps(world(beat(generation=2), two, three, of=mine)) == [GiveTurn("m", 2, "w2")]
    assert steps(world(beat(generation=2), beat("w2", "unloaded", 1), three, of=mine)) == [GiveTurn("m", 2, "w2")]
    assert steps(world(one, of=roll)) == [], "nobody else would serve"
    all_but_one = models.give_turn(mine, "w2")
    assert steps(world(beat(generation=2), beat("w2", generation=2), three, of=all_but_one)) == [GiveTurn("m", 2, "w3")]
    assert steps(world(*(beat(w, generation=2) for w in ("w1", "w2", "w3")), of=roll)) == [Settle("m", 2)]


def test_left_behind_claims_and_starts_are_ended() -> None:
    left = entry(stage="claimed", at_ms=1000)
    assert steps(world(of=left, now=5000)) == []
    assert steps(world(of=left, now=6001)) == [TakeBack("m", 1)]
    changing = entry(stage="changing", at_ms=1000)
    test = experiment(created_ms=1001)
    assert steps(world(of=changing, tests=(test,), now=6000)) == []
    (step,) = steps(world(of=changing, tests=(test,), now=6002))
    assert isinstance(step, EndTest)
    assert steps(world(of=changing, tests=(experiment(created_ms=999),), now=9000)) == [], "a load under a test"


def test_what_nobody_uses_is_let_go() -> None:
    idle = beat(idle_s=61.0)
    assert steps(world(idle, unused_minutes=1)) == [LetGo("m", "unused for 1 min")]
    assert steps(world(idle)) == []
    for busy in (
        beat(idle_s=-1.0), beat(idle_s=61.0, running=1), beat(idle_s=61.0, queued=1), beat(idle_s=59.0),
        beat(idle_s=61.0, engine="openai"), beat(state="draining", idle_s=61.0), beat(state="unloaded", idle_s=61.0),
        beat(idle_s=61.0, next_state="loading"),
    ):  # fmt: skip
        assert steps(world(busy, unused_minutes=1)) == []
        if busy.state != "unloaded":
            assert steps(world(idle, beat("w2", **{f: getattr(busy, f) for f in ("state", "idle_s", "running", "queued", "engine", "next_state")}), unused_minutes=1)) == []
    assert steps(world(idle, tests=(experiment(),), unused_minutes=1)) == []
    assert steps(world(idle, tests=(experiment("x", "m", TestStatus.SCHEDULED),), unused_minutes=1)) == []
    assert steps(world(idle, of=entry(stage="claimed", at_ms=2000), unused_minutes=1)) == []


def plan(worker: str = "w1", loaded: int = 2, most: int = 2) -> ModelPlan:
    return ModelPlan(worker=worker, loaded_models=loaded, max_models=most)


def test_room_is_made_of_what_was_used_longest_ago() -> None:
    old, young = beat(model="old", idle_s=100.0), beat(model="young", idle_s=50.0)
    assert room("new", [plan()], world(old, young)).victims == ("old",)
    assert room("new", [plan(loaded=1)], world(old, young)).victims == ()
    assert room("old", [plan()], world(old, young)).victims == (), "it has its place already"
    assert room("new", [plan(loaded=3)], world(old, young)).victims == ("old", "young")
    assert room("new", [plan()], world(old, young, tests=(experiment("old", "x"),))).victims == ("young",)
    elsewhere = beat("w2", model="old", idle_s=1.0)
    assert room("new", [plan()], world(old, young, elsewhere)).victims == ("young",), "w2 has just used the other"
    assert room("new", [plan()], world(old, young), idle_s=60).victims == ("old",)
    full = room("new", [plan()], world(old, young), idle_s=200)
    assert full.victims == ()
    assert "'old' (ready, 0 running)" in full.full["w1"]


@pytest.mark.parametrize(
    ("need", "loaded", "full", "freed", "code"),
    [
        (None, 0, {}, 0, None), (ModelNeed(model="m", fits=True), 2, {"w1": "x"}, 0, None),
        (ModelNeed(model="m", fits=False, total_bytes=9, available_bytes=5), 0, {}, 0, "insufficient_memory"),
        (ModelNeed(model="m", fits=False, total_bytes=9, available_bytes=5), 0, {}, 4, None),
        (ModelNeed(model="m", fits=False, total_bytes=9, available_bytes=9), 2, {"w1": "x"}, 0, "too_many_models"),
        (ModelNeed(model="m", fits=False, total_bytes=9, available_bytes=9), 2, {}, 0, None),
        (ModelNeed(model="m", fits=False, total_bytes=9, available_bytes=9), 1, {}, 0, "model_not_loadable"),
        (ModelNeed(model="m", fits=False, source="none"), 2, {}, 0, "model_not_loadable"),
    ],
)  # fmt: skip
def test_why_a_worker_does_not_take_a_model(need: ModelNeed | None, loaded: int, full: dict, freed: int, code: str | None) -> None:
    assert refusal(plan(loaded=loaded), need, Room((), full), freed) == code


def test_full_of_what_is_in_use_says_who_holds_the_places() -> None:
    busy = beat(model="busy", running=3, idle_s=-1.0)
    tested = beat(model="tested", idle_s=500.0)
    found = room("new", [plan()], world(busy, tested, tests=(experiment("tested", "x"),)))
    assert found.full == {"w1": "'busy' (ready, 3 running), 'tested' (test 'ab_test_1')"}


_states = st.sampled_from(["registered", "verifying", "loading", "warming", "ready", "draining", "unloaded", "failed"])
_beats = st.builds(
    lambda model, worker, state, generation, idle, running, engine: beat(
        worker, state, generation, model=model, idle_s=idle, running=running, engine=engine
    ),
    st.sampled_from(["m", "n", "o"]), st.sampled_from(["w1", "w2"]), _states, st.integers(0, 3),
    st.floats(-1, 1000), st.integers(0, 2), st.sampled_from(["vllm", "openai"]),
)  # fmt: skip
_tests = st.lists(st.builds(experiment, st.sampled_from(["m", "n"]), st.sampled_from(["o", "x"]), st.sampled_from([*TestStatus])), max_size=2)


@given(st.lists(_beats, max_size=6), _tests, st.floats(0, 10), st.integers(1, 3))
def test_nothing_in_use_is_ever_let_go_or_thrown_out(beats: list[Heartbeat], tests: list[Experiment], minutes: float, most: int) -> None:
    seen = world(*beats, tests=tuple(tests), unused_minutes=minutes)
    plans = [plan(worker, loaded=3, most=most) for worker in ("w1", "w2")]
    gone = {step.name for step in steps(seen) if isinstance(step, LetGo)} | {*room("z", plans, seen).victims}
    for name in gone:
        assert not any(test.live and name in {test.model_a, test.model_b} for test in tests)
        for worker in seen.of[name].values():
            assert worker.state in {"ready", "registered", "unloaded", "failed"}
            assert worker.state != "ready" or not (worker.running or worker.idle_s < 0 or worker.engine == "openai")


_commands = st.sampled_from(
    [Register("m", SPEC, "a", replace=True), Register("m", OTHER, "b", replace=True), Register("m", SPEC, "c"),
     Load("m", "d"), Load("m", "e", anew=True), Unload("m", "f"), Unload("m", KEEPER), Remove("m", "g")]
)  # fmt: skip


@given(st.lists(st.tuples(_commands, st.sampled_from(["confirm", "take back", "settle", "go back", "leave"]), st.booleans())))
def test_generations_only_go_up_and_a_claim_never_loses_what_was_there(moves: list) -> None:
    now: ModelEntry | None = None
    for command, then, serving in moves:
        seen = Seen([beat(generation=now.generation if now else 0)] if serving else [])
        before = now
        try:
            made = models.claim(now, command, seen, 1)
        except Refused:
            made = Claim(None, "refused", 0)
        if made.entry is None:
            if now is not None and now.stage == "claimed":
                now = models.take_back(now, now)
            continue
        new = made.entry
        assert new.generation == (before.generation if before else 0) + 1
        if then == "take back":
            back = models.take_back(new, new)
            assert (back is None and before is None) or (back is not None and before is not None and models.same(back, before))
        elif then == "leave":
            now = new
        else:
            now = models.confirm(new, new, 2)
            if then == "settle":
                now = models.settle(now, 3)
                assert not now.has_previous
            if then == "go back" and now.has_previous:
                was = now.previous
                now = models.go_back(now, "broken", 3)
                assert now.spec == was
                assert now.generation == new.generation + 1
        assert now is None or ModelEntry.model_validate_json(now.model_dump_json()) == now


@given(_states, st.integers(0, 4), st.sampled_from(["loaded", "unloaded", "removed"]))
def test_a_worker_has_reached_only_what_it_was_told(state: str, generation: int, desired: str) -> None:
    wanted = entry(stage="changing", generation=2, desired=desired)
    if reached(wanted, beat(state=state, generation=generation)):
        assert generation >= 2 or (desired == "removed" and generation == 0)
