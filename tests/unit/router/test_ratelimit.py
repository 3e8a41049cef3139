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


def test_routers_share_a_limit_and_each_allows_at_least_one() -> None:
    for routers, burst in ((1, 10), (3, 3), (20, 1)):
        limiter = RateLimiter(per_minute=60, burst=10)
        limiter.share(routers)
        assert [limiter.take("k", 100.0) for _ in range(burst)] == [None] * burst
        assert limiter.take("k", 100.0) == routers, "so long until this router's share has grown by one"
        assert limiter.take("k", 100.0 + routers) is None
    limiter.share(1)
    assert limiter.take("other", 200.0) is None
    unlimited = RateLimiter(per_minute=0, burst=1)
    unlimited.share(5)
    assert all(unlimited.take("k", 0.0) is None for _ in range(100))


@given(st.integers(1, 50), st.integers(1, 40))
def test_all_shares_together_never_exceed_the_limit_where_it_can_be_shared(burst: int, routers: int) -> None:
    shares = [RateLimiter(per_minute=60, burst=burst) for _ in range(routers)]
    for one in shares:
        one.share(routers)
    allowed = sum(one.take("k", 0.0) is None for one in shares for _ in range(burst + 1))
    assert allowed <= max(burst, routers)


@given(st.integers(0, 600), st.integers(1, 600), st.integers(1, 4), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_a_keys_own_rate_is_in_the_place_of_the_configured_one_and_shared(
    per_minute: int, own: int, routers: int, gaps: list[float]
) -> None:
    limiters = [RateLimiter(per_minute, 3) for _ in range(routers)]
    for limiter in limiters:
        limiter.share(routers)
    now, allowed = 1000.0, 0
    for gap in gaps:
        now += gap
        allowed += sum(limiter.take("k", now, own) is None for limiter in limiters)
    assert allowed <= max(routers, own // 6) + own / 60 * (now - 1000.0) + 1e-6
    assert allowed >= routers, "each lets at least one in"
