"""What `cypria load --scenario` plays: how arrivals and prompts change, and how a canary misbehaves; pure."""

from dataclasses import dataclass

PERIOD_S = 60.0
"""A drift is complete after so long."""
BURST_EVERY_S, BURST_S = 10.0, 2.0


@dataclass(frozen=True)
class Shape:
    """How a load changes with time: ``kind`` is steady, burst or drift. The mean rate over a minute stays."""

    kind: str = "steady"

    def factor(self, at_s: float) -> float:
        """Of the rate, so many seconds after the begin."""
        if self.kind == "burst":
            return 4.0 if at_s % BURST_EVERY_S < BURST_S else 0.25
        return 0.5 + self._done(at_s) if self.kind == "drift" else 1.0

    def repeats(self, at_s: float) -> int:
        """How often a prompt says the same: prompts grow to eight times their length in a drift."""
        return 1 + round(7 * self._done(at_s)) if self.kind == "drift" else 1

    @staticmethod
    def _done(at_s: float) -> float:
        return min(1.0, at_s / PERIOD_S)


STEADY = Shape()


@dataclass(frozen=True)
class Scenario:
    """``bad`` scenarios must end in a rollback, the others must be left alone."""

    name: str
    what: str
    shape: Shape = STEADY
    error_share: float = 0.0
    slower: float = 1.0

    @property
    def bad(self) -> bool:
        """Whether the canary misbehaves."""
        return self.error_share > 0 or self.slower > 1


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("bad-canary", "half of the canary's answers are errors", error_share=0.5),
        Scenario("slow-canary", "the canary takes three times as long", slower=3.0),
        Scenario("drift", "three times as many requests with prompts eight times as long, in a minute", Shape("drift")),
        Scenario("burst", "for 2 s in every 10, requests come sixteen times as fast", Shape("burst")),
    )
}  # fmt: skip
