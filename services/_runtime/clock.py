"""The only place where processes read the time; the domain gets it as an argument."""

import time


def now_ms() -> int:
    """Wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never jumps."""
    return time.monotonic()
