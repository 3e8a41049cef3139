"""How far a step down goes at once: what the stable model has shown, its queue, its latency, its places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.capacity import (
    BEYOND_SHOWN,
    MIN_ANSWERS,
    OCCUPIED,
    SHOWN_S,
    SLOT_S,
    SLOWER,
    Gauge,
    Load,
    Step,
    next_step,
)

IDLE = Load(workers=1, capacity=8, running=0.0, peak=0.0)


def load(running: float, peak: float | None = None, capacity: int = 1000, workers: int = 1, **fields: object) -> Load:
    return Load(workers=workers, capacity=capacity, running=running, peak=running if peak is None else peak, **fields)


def step(share: int, wanted: int, stable: Load, canary: Load = IDLE) -> Step:
    return next_step(share, wanted, model="stable", stable=stable, canary=canary)


def feed(gauge: Gauge, seconds: float, begin: float = 0.0, *, running: int = 0, queued: int = 0, capacity: int = 100) -> float:
    now = begin
    while now < begin + seconds:
        gauge.sample(now, workers=2, capacity=capacity, running=running, queued=queued)
        now += 0.25
    return now


def test_without_load_the_whole_step_is_made() -> None:
    assert step(5000, 2500, IDLE).share_bp == 2500
    assert step(150, 0, IDLE).share_bp == 0


def test_a_step_goes_a_quarter_beyond_what_was_shown_and_no_further() -> None:
    # At 50 % the stable model runs 100: 40 % would be 120, 37.5 % 125, 25 % 150.
    assert step(5000, 4000, load(100)).share_bp == 4000
    assert step(5000, 2500, load(100)).share_bp == 3750
    assert step(5000, 2500, load(100, peak=120)).share_bp == 2500


def test_places_bound_a_step_too() -> None:
    assert step(5000, 2500, load(100, peak=500, capacity=130)).share_bp == 4150
    assert step(5000, 2500, load(100, peak=500, capacity=112)).share_bp == 4960
    full = step(5000, 2500, load(100, peak=500, capacity=110))
    assert (full.share_bp, full.waiting) == (None, "room for more at 'stable'")
    assert full.figures == "100.0 requests run on 110 places, 500.0 were shown"


def test_a_small_load_may_grow_by_one_request_for_each_worker() -> None:
    assert step(5000, 2500, load(1, capacity=8)).share_bp == 2500
    assert step(5000, 2500, load(4, capacity=8)).share_bp == 3750
    assert step(5000, 2500, load(4, capacity=16, workers=2)).share_bp == 2500


@pytest.mark.parametrize(
    ("stable", "waiting"),
    [
        (Load(), "a ready worker of 'stable'"),
        (Load(workers=1, capacity=8), "the load of 'stable' to be known"),
        (load(0, queued=1), "the queue of 'stable' to empty"),
        (load(1, slower=1.51), "'stable' to answer as fast as usual"),
    ],
)
def test_nothing_is_added_to_a_model_that_is_not_up_to_it(stable: Load, waiting: str) -> None:
    found = step(5000, 2500, stable)
    assert (found.share_bp, found.waiting) == (None, waiting)
    assert found.figures


def test_a_little_slower_is_no_reason() -> None:
    assert step(5000, 2500, load(1, slower=1.49)).share_bp == 2500


def test_from_the_whole_traffic_the_canarys_load_tells_what_comes() -> None:
    nothing_shown = load(0, workers=2)
    assert step(10_000, 5000, nothing_shown, canary=load(100)).share_bp == 9800
    assert step(10_000, 5000, nothing_shown).share_bp == 5000, "a canary without load brings none"
    # With 2 % of the traffic at the stable model, its own load may look like nothing.
    assert step(9800, 4900, load(0.0, peak=2.0, workers=2), canary=load(98)).share_bp == 9400


@pytest.mark.parametrize(("share", "expected"), [(2500, 5), (5000, 7), (9000, 14), (10_000, 22)])
def test_all_the_traffic_comes_back_in_steps_that_each_follow_from_the_one_before(share: int, expected: int) -> None:
    steps, total = 0, 100.0
    peak = total * (1 - share / 10_000)
    while share:
        running = total * (1 - share / 10_000)
        peak = max(peak, running)
        wanted = 0 if share // 2 < 100 else share // 2
        found = step(share, wanted, load(running, peak), canary=load(total * share / 10_000))
        assert found.share_bp is not None
        after = total * (1 - found.share_bp / 10_000)
        assert after <= max(peak * BEYOND_SHOWN, peak + 1) + 1e-6
        share, steps = found.share_bp, steps + 1
    assert steps == expected


@given(
    st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 50),
    st.integers(1, 10_000), st.floats(0, 1e4),
)  # fmt: skip
def test_a_step_never_exceeds_what_fits(
    share: int, part: float, running: float, peak: float, workers: int, capacity: int, canary: float
) -> None:
    wanted = min(share - 1, int(part * share))
    stable = load(running, max(running, peak), capacity, workers)
    found = step(share, wanted, stable, load(canary))
    if found.share_bp is None:
        assert found.waiting
        return
    assert wanted <= found.share_bp < share
    shown = max(running, peak)
    bound = min(max(BEYOND_SHOWN * shown, shown + workers), OCCUPIED * capacity)
    if share < 10_000:
        assert running * (10_000 - found.share_bp) / (10_000 - share) <= bound * (1 + 1e-9)
    if share > 5000:
        assert running + canary * (share - found.share_bp) / share <= bound * (1 + 1e-9)


def test_a_load_is_known_after_a_slot_and_is_a_mean() -> None:
    gauge = Gauge()
    feed(gauge, SLOT_S - 0.5, running=4)
    assert (gauge.load(SLOT_S - 0.5).running, gauge.load(SLOT_S - 0.5).workers) == (None, 2)
    now = feed(gauge, 3, SLOT_S - 0.5, running=6)
    seen = gauge.load(now)
    assert (seen.workers, seen.capacity, seen.queued) == (2, 100, 0)
    assert seen.running is not None
    assert 4 < seen.running < 6
    assert seen.peak is not None


def test_the_peak_is_of_ten_minutes_and_of_slots_without_a_queue() -> None:
    gauge = Gauge()
    now = feed(gauge, 10, running=9)
    now = feed(gauge, 20, now, running=50, queued=1)
    now = feed(gauge, 20, now, running=3)
    assert gauge.load(now).peak == 9
    now = feed(gauge, SHOWN_S - 10, now, running=3)
    assert (gauge.load(now).peak, gauge.load(now).running) == (3, 3)


def test_a_model_that_was_away_has_shown_nothing_for_as_long() -> None:
    gauge = Gauge()
    feed(gauge, 10, running=9)
    assert gauge.load(SHOWN_S + 20).running is None
    now = feed(gauge, 10, SHOWN_S + 20, running=1)
    assert gauge.load(now).peak == 1


def test_latency_is_compared_with_what_is_usual_once_there_are_answers_enough() -> None:
    gauge = Gauge()
    now = feed(gauge, 60)
    for n in range(MIN_ANSWERS):
        gauge.answered(30 + n / 100, 0.1)
    assert gauge.load(now).slower is None
    for n in range(MIN_ANSWERS):
        gauge.answered(now + n / 100, 0.1 * SLOWER)
    gauge.sample(now + 1, workers=1, capacity=1, running=0, queued=0)
    assert gauge.load(now + 1).slower == pytest.approx(SLOWER)


def test_one_long_answer_does_not_make_a_model_slow() -> None:
    gauge = Gauge()
    now = feed(gauge, 60)
    for at in (30.0, now):
        for _ in range(MIN_ANSWERS):
            gauge.answered(at, 0.1)
    gauge.answered(now, 60.0)
    slower = gauge.load(now).slower
    assert slower is not None
    assert slower < SLOWER
