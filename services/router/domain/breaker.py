"""The router's own circuit breaker: consecutive errors of a canary, judged against the stable model beside it.

It needs no other process, so it is the fastest way out of a canary that fails every request.
"""

import math
from dataclasses import dataclass, field
from enum import Enum, auto

MAX_CHANCE = 1e-9
"""Highest probability of the run of errors, at the stable model's error rate, at which the breaker still fires."""
MIN_UNITS = 3
PROBE_EVERY_S = 10.0
PROBES_TO_CLOSE = 3


class Signal(Enum):
    """What a finished request changed."""

    NONE = auto()
    FIRED = auto()
    BOTH_ARMS = auto()
    BOTH_OVER = auto()
    CLOSED = auto()


@dataclass(slots=True)
class Breaker:
    """State of one test's canary on one router. ``limit`` is `max_consecutive_errors`; times are monotonic seconds.

    Fires on ``limit`` or more consecutive canary errors from at least three units if
    ((e+1)/(m+2))^n <= 1e-9, where e of the m stable requests that finished since the first of them failed:
    the posterior mean of the stable error rate under a uniform prior (Laplace's rule of succession), to the
    power of the run. A run that is long enough but could be the stable model's as well is "both arms".
    """

    limit: int
    open: bool = False
    errors: int = 0
    stable_done: int = 0
    stable_errors: int = 0
    units: set[int] = field(default_factory=set)
    probe_at: float = 0.0
    probe_successes: int = 0
    probing: bool = False
    told: bool = False

    def stable(self, now: float, *, error: bool) -> Signal:
        """A stable request finished; it may be the evidence that a long enough run of errors lacked."""
        if self.errors == 0 or self.open:
            return Signal.NONE
        self.stable_done += 1
        self.stable_errors += error
        return self._judge(now)

    def canary(self, unit: int, now: float, *, error: bool) -> Signal:
        """A canary request finished (while open: one that was under way when it opened, which changes nothing)."""
        if self.open:
            return Signal.NONE
        if not error:
            over = self.told
            self._forget()
            return Signal.BOTH_OVER if over else Signal.NONE
        self.errors += 1
        if len(self.units) < MIN_UNITS:
            self.units.add(unit)
        return self._judge(now)

    def _judge(self, now: float) -> Signal:
        if self.errors < self.limit or len(self.units) < MIN_UNITS:
            return Signal.NONE
        if self.chance() <= MAX_CHANCE:
            self.open = True
            self.probe_at = now + PROBE_EVERY_S
            self.probe_successes = 0
            self.probing = False
            return Signal.FIRED
        if self.stable_errors and not self.told:
            self.told = True
            return Signal.BOTH_ARMS
        return Signal.NONE

    def chance(self) -> float:
        """Probability of the present run of errors at the stable model's error rate."""
        rate = (self.stable_errors + 1) / (self.stable_done + 2)
        return math.exp(self.errors * math.log(rate))

    def try_probe(self, now: float) -> bool:
        """While open: whether this request may go to the canary; one at a time, ten seconds apart."""
        if not self.open or self.probing or now < self.probe_at:
            return False
        self.probing = True
        return True

    def probed(self, now: float, *, error: bool | None) -> Signal:
        """The probe finished; ``error`` None says nothing about the canary (its caller hung up, or erred)."""
        self.probing = False
        self.probe_at = now + PROBE_EVERY_S
        if error is None or not self.open:
            return Signal.NONE
        if error:
            self.probe_successes = 0
            return Signal.NONE
        self.probe_successes += 1
        if self.probe_successes < PROBES_TO_CLOSE:
            return Signal.NONE
        self.open = False
        self._forget()
        return Signal.CLOSED

    def _forget(self) -> None:
        self.errors = self.stable_done = self.stable_errors = 0
        self.units.clear()
        self.told = False
