"""Token buckets."""

from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.ratelimit import RateLimiter


def test_a_burst_then_the_average() -> None:
    limiter = RateLimiter(per_minute=60, burst=3)
    assert [limiter.take("k", 100.0) for _ in range(4)] == [None, None, None, 1]
    assert limiter.take("k", 101.0) is None
    assert limiter.take("k", 101.0) == 1
    assert limiter.take("other", 101.0) is None


def test_zero_means_no_limit() -> None:
    limiter = RateLimiter(per_minute=0, burst=1)
    assert all(limiter.take("k", 0.0) is None for _ in range(1000))


@given(st.floats(1, 600), st.integers(1, 20), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_never_more_than_burst_plus_rate_times_time(per_minute: float, burst: int, gaps: list[float]) -> None:
    limiter = RateLimiter(per_minute, burst)
    now, allowed = 1000.0, 0
    for gap in gaps:
        now += gap
        allowed += limiter.take("k", now) is None
    assert allowed <= burst + per_minute / 60 * (now - 1000.0) + 1e-6


@given(st.floats(1, 600), st.integers(1, 5))
def test_waiting_as_long_as_told_is_enough(per_minute: float, burst: int) -> None:
    limiter = RateLimiter(per_minute, burst)
    wait = None
    while wait is None:
        wait = limiter.take("k", 50.0)
    assert limiter.take("k", 50.0 + wait) is None


def test_memory_is_bounded() -> None:
    limiter = RateLimiter(per_minute=60, burst=1)
    for n in range(20_000):
        limiter.take(str(n), 0.0)
    assert len(limiter._buckets) <= 10_000
