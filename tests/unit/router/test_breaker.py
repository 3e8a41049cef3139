"""The local circuit breaker: fires on the canary's errors only, and lets it back after three good trials."""

import math

from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.breaker import MAX_CHANCE, PROBE_EVERY_S, Breaker, Signal


def failing(
    breaker: Breaker, count: int, *, stable_each: int = 4, units: int = 10, stable_error: bool = False
) -> Signal:
    signal = Signal.NONE
    for i in range(count):
        signal = breaker.canary(i % units, float(i), error=True)
        for _ in range(stable_each):
            if signal is Signal.NONE:
                signal = breaker.stable(float(i), error=stable_error)
        if signal is not Signal.NONE:
            return signal
    return signal


def test_it_fires_at_once_on_the_tenth_error_in_a_row() -> None:
    breaker = Breaker(10)
    assert failing(breaker, 9) is Signal.NONE
    assert breaker.canary(9, 9.0, error=True) is Signal.FIRED
    assert breaker.open


def test_it_needs_three_units() -> None:
    breaker = Breaker(10)
    assert failing(breaker, 50, units=2) is Signal.NONE
    assert breaker.canary(99, 50.0, error=True) is Signal.FIRED


def test_a_success_ends_the_run() -> None:
    breaker = Breaker(3)
    failing(breaker, 2)
    breaker.canary(1, 2.0, error=False)
    assert failing(breaker, 2) is Signal.NONE
    assert breaker.errors == 2


def test_both_arms_failing_is_told_once_and_opens_nothing() -> None:
    breaker = Breaker(10)
    assert failing(breaker, 100, stable_error=True) is Signal.BOTH_ARMS
    assert failing(breaker, 100, stable_error=True) is Signal.NONE
    assert not breaker.open
    assert breaker.canary(1, 100.0, error=False) is Signal.BOTH_OVER
    assert breaker.canary(1, 101.0, error=False) is Signal.NONE
    assert failing(breaker, 100, stable_error=True) is Signal.BOTH_ARMS


def test_without_stable_traffic_it_waits_for_some() -> None:
    breaker = Breaker(10)
    assert failing(breaker, 20, stable_each=0) is Signal.NONE  # (1/2)**20 is not enough
    assert breaker.stable(20.0, error=False) is Signal.FIRED  # (1/3)**20 is


@given(st.integers(1, 30), st.integers(0, 200), st.data())
def test_it_fires_only_when_the_formula_says_so(errors: int, done: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, done))
    breaker = Breaker(1)
    breaker.canary(0, 0.0, error=True)
    for i in range(done):
        breaker.stable(0.0, error=i < bad)
    signal = Signal.NONE
    for i in range(1, errors):
        if breaker.open:
            break
        signal = breaker.canary(i, 0.0, error=True)
    if signal is Signal.FIRED:
        assert ((bad + 1) / (done + 2)) ** breaker.errors <= MAX_CHANCE * (1 + 1e-9)
    elif not breaker.open and breaker.errors >= 3:
        assert math.exp(breaker.errors * math.log((bad + 1) / (done + 2))) > MAX_CHANCE


def test_a_stable_error_rate_of_half_takes_many_more() -> None:
    breaker = Breaker(10)
    fired = 0
    while not breaker.open:
        fired += 1
        breaker.canary(fired, float(fired), error=True)
        breaker.stable(float(fired), error=fired % 2 == 0)
    assert fired >= 28


def test_open_it_tries_one_request_every_ten_seconds_and_closes_after_three_successes() -> None:
    breaker = Breaker(10)
    failing(breaker, 10)
    opened = breaker.probe_at - PROBE_EVERY_S
    assert not breaker.try_probe(opened + 9.9)
    assert breaker.try_probe(opened + 10)
    assert not breaker.try_probe(opened + 30)  # one at a time
    assert breaker.probed(opened + 31, error=True) is Signal.NONE
    assert not breaker.try_probe(opened + 40)
    at = opened + 41
    for turn in range(3):
        assert breaker.try_probe(at)
        signal = breaker.probed(at, error=False)
        assert signal is (Signal.CLOSED if turn == 2 else Signal.NONE)
        at += PROBE_EVERY_S
    assert not breaker.open
    assert breaker.errors == 0


def test_a_probe_that_says_nothing_counts_nothing() -> None:
    breaker = Breaker(10)
    failing(breaker, 10)
    at = breaker.probe_at
    for error in (False, None, False, None):
        assert breaker.try_probe(at)
        assert breaker.probed(at, error=error) is Signal.NONE
        at += PROBE_EVERY_S
    assert breaker.probe_successes == 2


def test_requests_under_way_when_it_opened_change_nothing() -> None:
    breaker = Breaker(10)
    failing(breaker, 10)
    assert breaker.canary(1, 20.0, error=False) is Signal.NONE
    assert breaker.stable(20.0, error=False) is Signal.NONE
    assert breaker.open
