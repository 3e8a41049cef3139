"""One-sample limits: an arm against a configured number instead of against control.

Sources: the error rate is Core A's binomial factor with the limit in the place of the share (Lindon &
Malek, arXiv 2011.03567); the mean is Core C (see ``mixture``). Acted on only while control's own test
of the same limit is quiet: otherwise both arms are bad, which is an alert and no rollback.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.monitor.domain.statistics.histogram import GAMMA, Floats, State
from services.monitor.domain.statistics.mixture import TAU, lower_bound, mixture_log_e
from services.monitor.domain.statistics.rate import RateEProcess
from services.monitor.domain.statistics.start_mixture import FIRST_W0

MIN_MEAN_OBSERVATIONS = 30


class AbsoluteRate:
    """ln E against "at most a share p0 of trials goes wrong", by odds of 1.5 to 64 times those of p0.

    With sticky units give first-error units of the epoch as events and finished requests as trials:
    repeated errors of one unit then add nothing to the events, and the test stays on the safe side.
    """

    def __init__(self, limit: float, w0: float = FIRST_W0, steps: int = 1) -> None:
        """Create the process at E = 1.

        Args:
            limit: p0 as a share, in (0, 1]; at 1 nothing can ever exceed it.
            w0: mass bet from the start.
            steps: planned steps of 5 s.

        Raises:
            ValueError: limit, w0 or steps is out of range.
        """
        if not 0.0 < limit <= 1.0:
            msg = f"limit must be a share within (0, 1] (0.05 means 5 %), got {limit!r}"
            raise ValueError(msg)
        self.limit = limit
        self._process = RateEProcess(w0=w0, steps=steps)

    def update(self, tick: int, events: int, trials: int) -> None:
        """Take in one tick of one arm.

        Args:
            tick: whole seconds of broker time since the epoch began; never going back.
            events: bad outcomes.
            trials: all outcomes, bad ones included.

        Raises:
            ValueError: the tick goes back, a count is negative or events exceed trials.
        """
        if not 0 <= events <= trials:
            msg = f"need 0 <= events <= trials, got {events!r} and {trials!r}; count both at the same moment"
            raise ValueError(msg)
        self._process.update(tick, ((self.limit, trials - events, events),))

    def log_e(self) -> float:
        """Return ln E; above the limit at ln E >= ln(1/alpha_k)."""
        return self._process.log_e()

    def start_epoch(self, steps: int) -> None:
        """Begin a new epoch: E = 1, ticks count from 0 again."""
        self._process.start_epoch(steps)

    def paths(self) -> tuple[Floats, Floats]:
        """Return (ln mass, ln growth since the epoch began) of every bet, for planning."""
        return self._process.paths()

    def to_dict(self) -> State:
        """Return the checkpoint of this process."""
        return {"limit": self.limit, "process": self._process.to_dict()}

    @classmethod
    def from_dict(cls, state: State) -> AbsoluteRate:
        """Restore a process that goes on bit for bit where the checkpoint was taken."""
        rate = cls(state["limit"])
        rate._process = RateEProcess.from_dict(state["process"])
        return rate


@dataclass(frozen=True, slots=True)
class MeanSums:
    """Additive integer sums of one arm, from which its mean is judged against a limit.

    Attributes:
        n: observations.
        total: sum of x, in any unit (microseconds in the windows).
        squares: sum of x^2, in that unit squared.
    """

    n: int
    total: int
    squares: int

    def __add__(self, other: MeanSums) -> MeanSums:
        """Add the sums of another window."""
        return MeanSums(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float | None:
        """Mean of x, or None without observations."""
        return self.total / self.n if self.n else None

    @property
    def variance_of_mean(self) -> float:
        """Squared standard error of the mean; 0 with fewer than 2 observations."""
        if self.n < 2:
            return 0.0
        # In integers, because the two terms nearly cancel when the spread is small against the mean.
        spread = max(0, self.n * self.squares - self.total * self.total)
        return spread / (self.n * self.n * (self.n - 1))

    @property
    def uncertainty(self) -> float:
        """Squared standard error with what the observations cannot show, so that equal ones are no certainty.

        One more of them may be as little as nothing, which moves the mean by mean/(n + 1). Where they vary by less than
        a bin is wide they may all lie at the same place of theirs: then the mean is known within half of a bin.
        """
        if self.n < 2:
            return 0.0
        mean, variance = self.total / self.n, self.variance_of_mean
        more = (mean / (self.n + 1)) ** 2
        if variance * self.n < ((GAMMA - 1.0) * mean) ** 2:
            more += (0.5 * (GAMMA - 1.0) * mean) ** 2
        return variance + more

    def log_e_above(self, limit: float) -> float:
        """Return ln E against "the mean is at most ``limit``"; 0 below 30 observations.

        Raises:
            ValueError: limit is not positive.
        """
        _check_limit(limit)
        mean = self.mean
        if mean is None or self.n < MIN_MEAN_OBSERVATIONS:
            return 0.0
        return mixture_log_e(mean, self.uncertainty, limit, TAU * limit)

    def lower_bound(self, limit: float, alpha: float) -> float:
        """Return the lower confidence sequence of the mean (tuned for ``limit``); 0 below 30 observations.

        It lies above ``limit`` exactly when ``log_e_above(limit)`` reaches ln(1/alpha).

        Raises:
            ValueError: limit is not positive or alpha is not within (0, 1).
        """
        _check_limit(limit)
        mean = self.mean
        if mean is None or self.n < MIN_MEAN_OBSERVATIONS:
            return 0.0
        return max(0.0, lower_bound(mean, self.uncertainty, alpha, TAU * limit))


def _check_limit(limit: float) -> None:
    if not limit > 0.0:
        msg = f"limit must be positive, in the unit of the sums, got {limit!r}"
        raise ValueError(msg)
