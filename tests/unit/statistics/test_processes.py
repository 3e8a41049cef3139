"""Rules that hold for every e-process that is fed tick by tick."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.monitor.domain.statistics import (
    P95,
    P99,
    AbsoluteRate,
    LatencyEvidence,
    MannWhitney,
    RateEProcess,
    SampleRatio,
    TailExceedance,
)
from tests.unit.statistics.strategies import histogram_rows, rate_rows, ticks_of

RATE_LIKE = {
    "rate": lambda: RateEProcess(1.0, steps=7),
    "rate with margin": lambda: RateEProcess(1.5, steps=3),
    "non-inferiority": lambda: RateEProcess.non_inferiority(1.5),
    "srm": SampleRatio,
}
HISTOGRAM_LIKE = {
    "ranks": lambda: MannWhitney(0.0, steps=7),
    "ranks with margin": lambda: MannWhitney(0.2, steps=2),
    "p95": lambda: TailExceedance(P95, 0.1, steps=7),
    "p99": lambda: TailExceedance(P99, steps=7),
    "latency": lambda: LatencyEvidence(0.2, steps=7),
}
FACTORIES = {**RATE_LIKE, **HISTOGRAM_LIKE}


def stream_for(name):
    return ticks_of(rate_rows if name in RATE_LIKE else histogram_rows)


def round_trip(process):
    return type(process).from_dict(json.loads(json.dumps(process.to_dict(), allow_nan=False)))


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_never_nan_and_a_checkpoint_continues_bit_identically(name, data):
    stream = data.draw(stream_for(name))
    cut = data.draw(st.integers(0, len(stream)))
    straight, broken = FACTORIES[name](), FACTORIES[name]()
    for position, (tick, rows) in enumerate(stream):
        if position == cut:
            broken = round_trip(broken)
        straight.update(tick, rows)
        broken.update(tick, rows)
        assert not math.isnan(straight.log_e())
    assert round_trip(broken).to_dict() == straight.to_dict()
    assert broken.log_e() == straight.log_e()


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_of_a_tick_commute_exactly(name, data):
    forwards, backwards = FACTORIES[name](), FACTORIES[name]()
    for tick, rows in data.draw(stream_for(name)):
        forwards.update(tick, rows)
        backwards.update(tick, data.draw(st.permutations(rows)))
    assert forwards.to_dict() == backwards.to_dict()


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_tick_delivered_in_parts_equals_the_whole(name, data):
    whole, parts = FACTORIES[name](), FACTORIES[name]()
    for tick, rows in data.draw(stream_for(name)):
        whole.update(tick, rows)
        for row in rows:
            parts.update(tick, [row])
        parts.update(tick, [])
    assert parts.log_e() == pytest.approx(whole.log_e(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("pi", [0.0, 1.0])
def test_without_two_arms_the_factor_is_exactly_one(name, pi):
    process = FACTORIES[name]()
    row = (pi, 7, 9) if name in RATE_LIKE else (pi, {3: 5000}, {400: 5000})
    for tick in range(60):
        process.update(tick, [row])
        assert process.log_e() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_ticks_without_events_change_nothing(name):
    process = FACTORIES[name]()
    empty = (0.3, 0, 0) if name in RATE_LIKE else (0.3, {}, {5: 0})
    for tick in range(60):
        process.update(tick, [empty] if tick % 2 else [])
    assert process.log_e() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_impossible_input_is_refused_by_name(name):
    process = FACTORIES[name]()
    good = (0.5, 1, 1) if name in RATE_LIKE else (0.5, {1: 1}, {1: 1})
    with pytest.raises(ValueError, match="pi must be a share"):
        process.update(1, [(1.5, *good[1:])])
    with pytest.raises(ValueError, match="counts must be >= 0"):
        process.update(1, [(0.5, -1, 0) if name in RATE_LIKE else (0.5, {1: -1}, {})])
    process.update(9, [good])
    with pytest.raises(ValueError, match="tick must not go back"):
        process.update(8, [good])


@settings(max_examples=40, deadline=None)
@given(ticks_of(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=3)))
def test_absolute_rate_is_finite_and_restorable(stream):
    process = AbsoluteRate(0.05, steps=5)
    for tick, rows in stream:
        for events, good in rows:
            process.update(tick, events, events + good)
        assert math.isfinite(process.log_e())
        assert round_trip(process).to_dict() == process.to_dict()


@pytest.mark.parametrize("name", [name for name in FACTORIES if name not in {"srm", "non-inferiority"}])
def test_a_new_epoch_starts_at_one_and_counts_ticks_from_zero(name):
    process = FACTORIES[name]()
    bad = (0.5, 1, 60) if name in RATE_LIKE else (0.5, {10: 1000, 12: 60}, {300: 1000})
    for tick in range(100, 110):
        process.update(tick, [bad])
    assert process.log_e() > 10.0
    process.start_epoch(7)
    assert process.log_e() == pytest.approx(0.0, abs=1e-12)
    process.update(0, [bad])
    # Control's history survives, so latency is judged from the first tick of the new epoch.
    assert process.log_e() > 5.0
