"""Trials: from where the evidence of a check that steps down or pauses counts after it has fired, and at which level.

A rollback ends a test; a step down and a pause do not, so their checks fire more than once. Each firing ends a trial.
After a step down all checks that step down are quiet while the operator's backoff lasts (the reduced canary says
little about the one that will be tried again), after a pause not at all; then a trial begins: a check's evidence counts
from its value at that tick on, and after n firings it needs n * ln 2 more:

    fires again at  ln E_t - ln E_tau  >=  ln(1 / (alpha_k * v_e)) + n * ln 2

Level. E is a non-negative supermartingale while B is no worse than allowed, and tau (a tick that the past decides: the
end of a quiet time, or the start of an epoch, where E is 1) is a stopping time, so E_t / E_tau is an e-process of its
own that starts at 1: given everything up to tau, the chance that it ever reaches 2^n / (alpha_k * v_e) is at most
alpha_k * v_e / 2^n (Ville). Trial 0 of all checks and epochs has alpha, as if there were no repetitions; the trials
after it, whatever led to them, have together at most alpha * (1/2 + 1/4 + ...) = alpha (union over trials, checks and
epochs). So a canary that is no worse is stepped down at all with chance alpha at most, and a false n-th failure, the
one that rolls back, needs n false trials in a row.
"""

import math
from collections.abc import Iterable
from typing import Any

LN_2 = math.log(2.0)


class Trials:
    """Of one action, over all checks that take it. Times are broker seconds (Unix).

    ``count`` is how often the action was taken; ``quiet_until`` ends the quiet time after the last, None before any.
    """

    def __init__(self) -> None:
        self.count = 0
        self.quiet_until: int | None = None
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

    def took(self, second: int, quiet_s: int) -> None:
        """The action was taken: every check's trial has ended, and nothing begins for so many seconds."""
        self.count += 1
        self.quiet_until = second + quiet_s
        self._base = {}

    def quiet(self, second: int) -> bool:
        """Whether checks are quiet at a tick."""
        return self.quiet_until is not None and second < self.quiet_until

    def begin(self, second: int, name: str, log_e: float) -> None:
        """Begin a check's trial at its evidence, if it is due; one whose evidence cannot be told begins later."""
        if not self.armed(name) and not self.quiet(second) and math.isfinite(log_e):
            self._base[name] = log_e

    def start_epoch(self, second: int, names: Iterable[str]) -> None:
        """An epoch starts with E = 1: trials under way go on from there."""
        if self.count and not self.quiet(second):
            self._base = dict.fromkeys(names, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""
        return {"count": self.count, "quiet_until": self.quiet_until, "base": dict(self._base)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Trials":
        """Restore a checkpoint."""
        trials = cls()
        trials.count, trials.quiet_until = state["count"], state["quiet_until"]
        trials._base = dict(state["base"])
        return trials
