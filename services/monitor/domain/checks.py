"""The checks behind guardrails: each turns phases into evidence (ln E) about one limit, and into words with numbers.

Here those against control; those against a fixed number are in `limits`.

Units count once in each epoch (`docs/statistics.md`), so all of a check's evidence starts afresh with an epoch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from schemas.sketch import merge
from schemas.v1.common import Outcome
from schemas.v1.experiment import GuardrailAction
from services.monitor.domain.evidence import ArmEvidence, Phase
from services.monitor.domain.statistics import (
    LatencyEvidence,
    RateEProcess,
    histogram_quantile,
    requests_needed,
)
from services.monitor.domain.statistics.histogram import margin_shift
from services.monitor.domain.statistics.intervals import quantile_ratio_interval, rate_ratio_interval

US_PER_MS = 1000.0
NANO = 1e9
BOUND_STEPS = 30
LARGEST_RATIO = 64.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A check in numbers: value (observed), bound (what is shown at the check's level), threshold, and each arm.

    ``unit`` is ``%`` or ``ms``; ``value`` and ``bound`` are increases over control for relative limits and the
    canary's own figure for absolute ones. ``arm_unit`` is that of ``value_a`` and ``value_b``: ``%``, ``ms`` or ``$``.
    ``n_a`` and ``n_b`` are the observations of this epoch. ``quantity`` says what the values are: ``share``, ``mean``
    or a quantile.
    """

    text: str
    unit: str
    arm_unit: str
    value: float | None
    bound: float | None
    threshold: float
    value_a: float | None
    value_b: float | None
    n_a: int
    n_b: int
    quantity: str = "share"


Interval = tuple[float | None, float | None]
"""Lower and upper end; None where nothing is excluded there."""


class Check(ABC):
    """One limit under watch. ``family`` groups the limits on one quantity."""

    kind: ClassVar[str]
    absolute: ClassVar[bool] = False

    def __init__(self, name: str, family: str, action: GuardrailAction, threshold: float) -> None:
        self.name = name
        self.family = family
        self.action = action
        self.threshold = threshold

    @abstractmethod
    def start_epoch(self, steps: int) -> None:
        """Begin an epoch of ``steps`` steps of 5 s: E = 1."""

    @abstractmethod
    def update(self, tick: int, phases: Sequence[Phase]) -> None:
        """Take in the phases of one tick (seconds since the epoch began)."""

    @abstractmethod
    def log_e(self) -> float:
        """Evidence (ln E) that the limit is exceeded."""

    @abstractmethod
    def bad_units(self) -> int:
        """Distinct units of the canary in this epoch that look bad to this check."""

    def worse(self) -> bool:
        """Whether the canary looks worse than control at all. Evidence alone may not say so: units count once in an
        epoch, and where an outage has used up nearly all of control's, the next one is shown by the canary's alone.
        """
        return True

    def control_bad(self) -> bool:
        """Whether control exceeds the same absolute limit by its own evidence, or may well do so."""
        return False

    @abstractmethod
    def needs(self, requests: int, limit: float) -> int | None:
        """About how many more requests until ln E reaches ``limit`` at the effect seen so far; None: not in sight."""

    @abstractmethod
    def measure(self, limit: float) -> Measure:
        """The numbers behind ln E; ``limit`` is the level (ln) that the bound is stated at."""

    @abstractmethod
    def interval(self, alpha: float) -> Interval:
        """What `Measure.value` may be by the evidence of this epoch: a confidence sequence in the threshold's unit."""

    def calm(self, limit: float) -> Measure:
        """The numbers to show while there is no evidence worth the name."""
        return self.measure(limit)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Checkpoint."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint of the same check."""


class RateIncrease(Check):
    """Core A: units of B with a first bad event against those of A, at ratio 1 + margin."""

    kind = "rate"
    FIELDS: ClassVar[dict[str, tuple[str, str]]] = {
        "errors": ("first_errors", "errors"),
        "client_errors": ("first_client_errors", "callers' own errors"),
        "overdue": ("first_overdue", "overdue requests"),
        "feedback": ("first_thumbs_down", "thumbs-down"),
    }
    OUTCOMES: ClassVar[dict[str, str]] = {
        Outcome.TIMEOUT: "timeouts", Outcome.REJECTED: "rejected requests",
        Outcome.ERROR_MID_STREAM: "errors in mid-stream", Outcome.EMPTY: "empty replies",
        Outcome.LENGTH: "replies cut off by their length", Outcome.INVALID_JSON: "replies with invalid JSON",
        Outcome.INVALID_TOOL_CALL: "invalid tool calls", Outcome.REPETITION: "replies that repeat themselves",
    }  # fmt: skip

    def __init__(self, name: str, family: str, action: GuardrailAction, margin_percent: float, steps: int) -> None:
        super().__init__(name, family, action, margin_percent)
        self._field, self._noun = self.FIELDS[family] if family in self.FIELDS else ("", self.OUTCOMES[family])
        self._process = RateEProcess(1.0 + margin_percent / 100.0, steps=steps)
        self._events: dict[float, list[int]] = {}
        self._units = [0, 0]
        self._seen = [0, 0]

    @override
    def start_epoch(self, steps: int) -> None:
        self._process.start_epoch(steps)
        self._events, self._units, self._seen = {}, [0, 0], [0, 0]

    @override
    def update(self, tick: int, phases: Sequence[Phase]) -> None:
        rows = [(phase.pi, self._bad(phase.a), self._bad(phase.b)) for phase in phases]
        self._process.update(tick, rows)
        for phase, (pi, bad_a, bad_b) in zip(phases, rows, strict=True):
            self._seen[0] += phase.a.new
            self._seen[1] += phase.b.new
            if 0.0 < pi < 1.0:
                events = self._events.setdefault(pi, [0, 0])
                events[0] += bad_a
                events[1] += bad_b
                self._units[0] += phase.a.new
                self._units[1] += phase.b.new

    def _bad(self, arm: ArmEvidence) -> int:
        """Units of an arm with a first bad event."""
        if self._field:
            return int(getattr(arm, self._field))
        return arm.first_outcomes.get(Outcome(self.family), 0)

    @override
    def log_e(self) -> float:
        return self._process.log_e()

    @override
    def bad_units(self) -> int:
        return self._process.events_b

    @override
    def worse(self) -> bool:
        # Units first seen while only one arm had traffic are in the denominators too: where in doubt, this says yes.
        seen_a, seen_b = self._seen
        return not seen_a or not seen_b or self._process.events_b * seen_a > self._process.events_a * seen_b

    @override
    def needs(self, requests: int, limit: float) -> int | None:
        return requests_needed(self._process, requests, limit)

    @override
    def measure(self, limit: float) -> Measure:
        bad_a, bad_b = self._process.events_a, self._process.events_b
        n_a, n_b = self._units
        rate_a, rate_b = percent(bad_a, n_a), percent(bad_b, n_b)
        value = 100.0 * (rate_b / rate_a - 1.0) if rate_a and rate_b is not None else None
        bound = self._bound(limit)
        shown = f", at least {bound:.0f} % more" if bound is not None else ""
        text = (
            f"{self._noun}: {bad_b} of B's {n_b} units ({number(rate_b)} %) against {bad_a} of A's {n_a} "
            f"({number(rate_a)} %){shown}; the margin is {self.threshold:g} %"
        )
        return Measure(text, "%", "%", value, bound, self.threshold, rate_a, rate_b, n_a, n_b)

    @override
    def interval(self, alpha: float) -> Interval:
        if not self._process.events_a + self._process.events_b:
            return None, None
        low, high = rate_ratio_interval({pi: (a, b) for pi, (a, b) in self._events.items()}, alpha)
        return _increase(low), _increase(high)

    def _bound(self, limit: float) -> float | None:
        """The largest increase in percent that the plain test (all mass bet at once) rejects at this level."""
        low, high = self._process.rho0, self._process.rho0 * LARGEST_RATIO
        if not self._rejects(low, limit):
            return self.threshold if self.log_e() >= limit else None
        for _ in range(BOUND_STEPS):
            middle = (low * high) ** 0.5
            if self._rejects(middle, limit):
                low = middle
            else:
                high = middle
        return 100.0 * (low - 1.0)

    def _rejects(self, rho0: float, limit: float) -> bool:
        process = RateEProcess(rho0, w0=1.0)
        process.update(0, [(pi, a, b) for pi, (a, b) in self._events.items()])
        return process.log_e() >= limit

    @override
    def to_dict(self) -> dict[str, Any]:
        return {
            "process": self._process.to_dict(),
            "events": [[pi, *counts] for pi, counts in self._events.items()],
            "units": list(self._units),
            "seen": list(self._seen),
        }

    @override
    def load(self, state: dict[str, Any]) -> None:
        self._process = RateEProcess.from_dict(state["process"])
        self._events = {pi: [a, b] for pi, a, b in state["events"]}
        self._units = list(state["units"])
        self._seen = list(state["seen"])


class LatencyIncrease(Check):
    """Core B with its tails: first requests of B's units against A's, lowered by the margin; of times, and of cost."""

    kind = "latency"
    NOUNS: ClassVar[dict[str, str]] = {
        "latency": "latency", "ttft": "time to first token", "itl": "inter-token time", "cost": "cost per request",
    }  # fmt: skip

    def __init__(self, name: str, family: str, action: GuardrailAction, margin_percent: float, steps: int) -> None:
        super().__init__(name, family, action, margin_percent)
        self._shift = margin_shift(margin_percent / 100.0)
        self._evidence = LatencyEvidence(margin_percent / 100.0, steps=steps)
        self._bins: tuple[dict[int, int], dict[int, int]] = ({}, {})

    @override
    def start_epoch(self, steps: int) -> None:
        self._evidence.start_epoch(steps)
        self._bins = ({}, {})

    @override
    def update(self, tick: int, phases: Sequence[Phase]) -> None:
        rows = [(phase.pi, phase.a.bins[self.family], phase.b.bins[self.family]) for phase in phases]
        self._evidence.update(tick, rows)
        for _, bins_a, bins_b in rows:
            merge(self._bins[0], bins_a)
            merge(self._bins[1], bins_b)

    @override
    def log_e(self) -> float:
        return self._evidence.log_e()

    @override
    def bad_units(self) -> int:
        history = self._evidence.history
        if not history.total:
            return 0
        middle = history.percentile_bin(50) + self._shift
        return sum(count for index, count in self._bins[1].items() if index > middle)

    @override
    def needs(self, requests: int, limit: float) -> int | None:
        return requests_needed(self._evidence, requests, limit)

    @override
    def measure(self, limit: float) -> Measure:
        return self._measure(limit, *self._shown_part())

    def _measure(self, limit: float, share: float, label: str) -> Measure:
        value_a, value_b = (self._quantile(bins, share) for bins in self._bins)
        n_a, n_b = (sum(bins.values()) for bins in self._bins)
        value = 100.0 * (value_b / value_a - 1.0) if value_a and value_b is not None else None
        text = (
            f"{self.NOUNS[self.family]}: {label} {self._shown(value_b)} over {n_b} units of B against "
            f"{self._shown(value_a)} over {n_a} of A; the margin is {self.threshold:g} %"
        )
        bound = self.threshold if self.log_e() >= limit else None
        unit = "$" if self.family == "cost" else "ms"
        return Measure(text, "%", unit, value, bound, self.threshold, value_a, value_b, n_a, n_b, label)

    def _shown_part(self) -> tuple[float, str]:
        """The quantile that shows best what the evidence is about, and its name."""
        part = "ranks"
        value_a, value_b = (self._quantile(bins, 0.5) for bins in self._bins)
        if not value_a or value_b is None or value_b <= value_a * (1.0 + self.threshold / 100.0):
            # The bulk is within the margin: then it is a tail that was shown.
            parts = self._evidence.parts()
            part = max(parts, key=lambda name: parts[name])
        return {"ranks": (0.5, "median"), "p95": (0.95, "p95"), "p99": (0.99, "p99")}[part]

    @override
    def interval(self, alpha: float) -> Interval:
        found = quantile_ratio_interval(*self._bins, 0.5, alpha)
        return (None, None) if found is None else (_increase(found[0]), _increase(found[1]))

    @override
    def calm(self, limit: float) -> Measure:
        return self._measure(limit, 0.5, "median")

    def _quantile(self, bins: dict[int, int], share: float) -> float | None:
        """A quantile in milliseconds, or in dollars."""
        value = histogram_quantile(bins, share)
        return None if value is None else value / (NANO if self.family == "cost" else US_PER_MS)

    def _shown(self, value: float | None) -> str:
        return dollars(value) if self.family == "cost" else f"{number(value)} ms"

    @override
    def to_dict(self) -> dict[str, Any]:
        return {"evidence": self._evidence.to_dict(), "bins": [sorted(bins.items()) for bins in self._bins]}

    @override
    def load(self, state: dict[str, Any]) -> None:
        self._evidence = LatencyEvidence.from_dict(state["evidence"])
        bins_a, bins_b = ({int(index): int(count) for index, count in bins} for bins in state["bins"])
        self._bins = (bins_a, bins_b)


def _increase(ratio: float | None) -> float | None:
    """A multiple of control's as an increase in percent."""
    return None if ratio is None else 100.0 * (ratio - 1.0)


def percent(part: int, whole: int) -> float | None:
    """100 * part / whole; None of nothing."""
    return 100.0 * part / whole if whole else None


def number(value: float | None) -> str:
    """A figure for people: three significant digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ordinal(value: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    ending = "th" if value % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{ending}"


def dollars(value: float | None) -> str:
    """An amount for people: at least two decimals, and three significant digits of a small one."""
    if value is None:
        return "-"
    digits = 2 if value >= 1.0 or value <= 0.0 else min(12, 2 - math.floor(math.log10(value)))
    return f"${value:.{digits}f}"
