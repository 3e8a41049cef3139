"""Trials: from where the evidence of a check that steps down or pauses counts after it has fired, and at which level.

A rollback ends a test; a step down and a pause do not, so their checks may fire more than once. Each firing ends a
trial, and the next one begins
- after a step down, for all checks that step down: when the operator's backoff is over (the reduced canary says little
  about the one that will be tried again);
- after a pause, for the check that paused: when the test is resumed, when a new epoch begins, or when its ln E has
  fallen by as much as it takes to fire. What stays bad is said once, however long nobody comes.

A check's evidence then counts from its value at that tick on, and after n firings it needs n * ln 2 more:

    fires again at  ln E_t - ln E_tau  >=  ln(1 / (alpha_k * v_e)) + n * ln 2

Level. E is a non-negative supermartingale while B is no worse than allowed, and tau (a tick that the past decides, or a
person who knows no more than the past) is a stopping time, so E_t / E_tau is an e-process of its own that starts at 1:
given everything up to tau, the chance that it ever reaches 2^n / (alpha_k * v_e) is at most alpha_k * v_e / 2^n
(Ville). Trial 0 of all checks and epochs has alpha, as if there were no repetitions; the trials after it, whatever led
to them, have together at most alpha * (1/2 + 1/4 + ...) = alpha (union over trials, checks and epochs). So a canary
that is no worse is stepped down at all with chance alpha at most, and a false n-th failure, the one that rolls back,
needs n false trials in a row.
"""

import math
from collections.abc import Iterable
from typing import Any

LN_2 = math.log(2.0)


class Trials:
    """Those of one check that pauses, or of all that step down. Times are broker seconds (Unix).

    ``count`` is how often the action was taken; ``quiet_until`` ends the quiet time after the last, None where the next
    trial waits for no time.
    """

    def __init__(self) -> None:
        self.count = 0
        self.quiet_until: int | None = None
        self._peak = -math.inf
        self._base: dict[str, float] = {}

    def armed(self, name: str) -> bool:
        """Whether a trial of this check is under way."""
        return self.count == 0 or name in self._base

    def limit(self, name: str, level: float, log_e: float = 0.0) -> float:
        """The ln E at which a check fires; ``level`` is ln(1 / (alpha_k * v_e)).

        Before its trial has begun, that which it would be if it began now, at ``log_e``.
        """
        if self.count == 0:
            return level
        return level + self.count * LN_2 + self._base.get(name, log_e)

    def took(self, second: int, quiet_s: int | None) -> None:
        """The action was taken: the trial has ended, and no other begins for so many seconds, or without a reason."""
        self.count += 1
        self.quiet_until = None if quiet_s is None else second + quiet_s
        self._peak = -math.inf
        self._base = {}

    def quiet(self, second: int) -> bool:
        """Whether checks are quiet at a tick, for a time that has been set."""
        return self.quiet_until is not None and second < self.quiet_until

    def begin(self, second: int, name: str, log_e: float, level: float, *, resumed: bool) -> None:
        """Begin a check's trial at its evidence, if it is due; one whose evidence cannot be told begins later."""
        if self.armed(name) or not math.isfinite(log_e):
            return
        if self.quiet_until is None:
            self._peak = max(self._peak, log_e)
            due = resumed or log_e <= self._peak - level
        else:
            due = second >= self.quiet_until
        if due:
            self._base[name] = log_e

    def start_epoch(self, second: int, names: Iterable[str], *, paused: bool) -> None:
        """An epoch starts with E = 1: trials go on from there, and new ones begin, unless it is quiet or paused."""
        self._peak = -math.inf
        if self.count and not self.quiet(second) and not (paused and self.quiet_until is None):
            self._base = dict.fromkeys(names, 0.0)
        else:
            self._base = dict.fromkeys(self._base, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        peak = self._peak if math.isfinite(self._peak) else None
        return {"count": self.count, "quiet_until": self.quiet_until, "peak": peak, "base": dict(self._base)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Trials":
        """Restore a checkpoint."""
        trials = cls()
        trials.count, trials.quiet_until = state["count"], state["quiet_until"]
        trials._peak = -math.inf if state["peak"] is None else state["peak"]
        trials._base = dict(state["base"])
        return trials
