"""Token buckets, one for each key; with several routers, each enforces its share."""

import math
from collections import OrderedDict
from dataclasses import dataclass

_MAX_BUCKETS = 10_000


class RateLimiter:
    """Allows ``per_minute`` calls on average and ``burst`` at once for each key; per_minute 0 allows everything.

    A bucket holds at most ``burst`` tokens and gains ``per_minute / 60`` each second. A key may have a rate of its own,
    with ten seconds' worth of it at once.
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self._whole = (per_minute / 60.0, max(1, burst))
        self._rate, self._burst = self._whole[0], float(self._whole[1])
        self._routers = 1
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def share(self, routers: int) -> None:
        """So many routers serve: this one allows its part of the rate and of the burst, of which at least 1."""
        rate, burst = self._whole
        self._routers = routers
        self._rate, self._burst = rate / routers, float(max(1, burst // routers))

    def take(self, key: str, now_s: float, own_per_minute: int | None = None) -> int | None:
        """None when the call may go on; else whole seconds (at least 1) until the next one may.

        ``own_per_minute`` (over all routers) is what this key is allowed instead.
        """
        rate, most = self._rate, self._burst
        if own_per_minute is not None:
            rate, most = own_per_minute / 60.0 / self._routers, float(max(1, own_per_minute // 6 // self._routers))
        if rate <= 0:
            return None
        tokens, since = self._buckets.pop(key, (most, now_s))
        tokens = min(most, tokens + max(0.0, now_s - since) * rate)
        wait = None
        if tokens >= 1.0:
            tokens -= 1.0
        else:
            wait = max(1, math.ceil((1.0 - tokens) / rate))
        self._buckets[key] = (tokens, now_s)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait


@dataclass(frozen=True, slots=True)
class Limits:
    """The three limits of each key: control requests, feedback, inference."""

    control: RateLimiter
    feedback: RateLimiter
    inference: RateLimiter

    def share(self, routers: int) -> None:
        """So many routers serve now."""
        for limiter in (self.control, self.feedback, self.inference):
            limiter.share(routers)
