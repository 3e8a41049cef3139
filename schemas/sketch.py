"""Log-bin quantile sketch: additive, subtractable, exact counts at the bin edges.

Bin ``i`` holds the values x with GAMMA**(i-1) < x <= GAMMA**i, that is i = ceil(ln x / ln GAMMA)
(the mapping of DDSketch, Masson, Rim & Lee 2019), so that a bin's mid-point is within about 1 %.
Values are integers >= 1: microseconds, or nano-dollars.
"""

import math
from collections.abc import Mapping

GAMMA = 1.02
LN_GAMMA = math.log(GAMMA)
MAX_BIN = 32_000


def bin_index(value: float) -> int:
    """Bin of a value; anything below 1 falls into bin 0."""
    if value <= 1:
        return 0
    return min(math.ceil(math.log(value) / LN_GAMMA - 1e-12), MAX_BIN)


def bin_value(index: int) -> float:
    """The representative of a bin, at most 1 % from any value in it."""
    return 2.0 * math.exp(LN_GAMMA * index) / (1.0 + GAMMA)


def bin_upper(index: int) -> float:
    """Upper edge (inclusive) of a bin."""
    return math.exp(LN_GAMMA * index)


def quantile(bins: Mapping[int, int], q: float) -> float | None:
    """The q-quantile (0..1) of a histogram of bins; None when it is empty."""
    total = sum(bins.values())
    if total == 0:
        return None
    rank = q * (total - 1)
    seen = 0
    for index in sorted(bins):
        seen += bins[index]
        if seen > rank:
            return bin_value(index)
    return bin_value(max(bins))


def merge(into: dict[int, int], other: Mapping[int, int]) -> None:
    """Add one histogram to another in place."""
    for index, count in other.items():
        into[index] = into.get(index, 0) + count
