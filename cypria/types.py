"""What the edge answers, as frozen data classes. Fields of a later version are in ``raw``, the answer as it came.

Rates and splits are in percent, latencies in milliseconds, times RFC 3339, costs in dollars, as the API has them.
"""

from dataclasses import dataclass, field
from typing import Any

from cypria._shapes import Shape

ENDED = frozenset({"completed", "rolled_back", "failed"})


@dataclass(frozen=True, kw_only=True)
class Started(Shape):
    """A test that was started (or ``scheduled``)."""

    test_id: str
    status: str


@dataclass(frozen=True, kw_only=True)
class Changed(Shape):
    """A test's status after a command; of a new split the split in force from now on."""

    test_id: str
    status: str
    traffic_split_percent: float | None = None


@dataclass(frozen=True, kw_only=True)
class Variant(Shape):
    """Figures of one variant; more of them are in ``raw``."""

    request_count: int = 0
    error_rate: float = 0.0
    error_count: int = 0
    client_errors: int = 0
    in_flight: int = 0
    overdue: int = 0
    avg_latency_ms: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    throughput_rps: float = 0.0
    cost: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ramp(Shape):
    """Where a ramp stands: ``step`` is counted from 1; ``held`` says why it goes no further by itself."""

    step: int
    of: int
    shares: list[float] = field(default_factory=list)
    gate: str = ""
    approved: bool = False
    soak_left_minutes: float = 0.0
    held: str | None = None


@dataclass(frozen=True, kw_only=True)
class Status(Shape):
    """A test now; all None where nothing runs. ``metrics`` is by ``variant_a`` and ``variant_b``.

    As text it is one line, fit for a log.
    """

    test_id: str | None
    status: str | None = None
    elapsed_minutes: float | None = None
    remaining_minutes: float | None = None
    traffic_split_percent: float | None = None
    effective_split_percent: float | None = None
    metrics: dict[str, Variant] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    auto_rollback: bool | None = None
    ramp: Ramp | None = None
    waiting_for: str | None = None
    retry_at: str | None = None
    starts_at: str | None = None
    rollback_at: str | None = None
    running_tests: list[str] = field(default_factory=list)
    verdict: dict[str, Any] | None = None
    degraded: list[str] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether the test has come to its end."""
        return self.status in ENDED

    @property
    def summary(self) -> str:
        """The monitor's word on how the evidence stands, empty where it has none."""
        return str((self.verdict or {}).get("summary") or "")

    def changes(self) -> tuple[Any, ...]:
        """What a line in a log is worth when it has changed."""
        ramp = self.ramp and (self.ramp.step, self.ramp.held)
        return (self.status, self.traffic_split_percent, self.effective_split_percent, ramp, self.waiting_for and
                ("approv" in self.waiting_for), self.retry_at, bool(self.degraded))  # fmt: skip

    def __str__(self) -> str:
        if self.test_id is None:
            return "no test is running"
        words = [f"{self.test_id} {self.status}"]
        if not self.ended:
            split = self.effective_split_percent
            words.append("" if split is None else f"split {split:g} %")
            words.append(f"step {self.ramp.step} of {self.ramp.of}" if self.ramp else "")
        counts = [f"{name[-1].upper()} {one.request_count:,} requests, {one.error_rate:.2f} % errors"
                  for name, one in sorted(self.metrics.items())]  # fmt: skip
        words += [*counts, self.summary, *self.degraded]
        return "; ".join(filter(None, words))


@dataclass(frozen=True, kw_only=True)
class Decided(Shape):
    """Why a decision was taken: the rule, what it measured, its bound, and how much evidence there was."""

    decision: str
    reason: str = ""
    rule: str = ""
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None
    n_a: int = 0
    n_b: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Test(Shape):
    """A test and, once it has ended, its result."""

    __test__ = False

    test_id: str
    status: str
    decision: str | None = None
    reason: str | None = None
    start_time: str | None = None
    end_time: str | None = None
    traffic_split_percent: float = 0.0
    models: dict[str, str] = field(default_factory=dict)
    metrics_summary: dict[str, Variant] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    verdict: Decided | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a test: ``decision`` is ``promote_b``, ``keep_a``, ``rollback`` or ``inconclusive``."""

    test: Test

    @property
    def test_id(self) -> str:
        """The test's."""
        return self.test.test_id

    @property
    def decision(self) -> str:
        """``inconclusive`` also where a test failed before anything was decided."""
        return self.test.decision or "inconclusive"

    @property
    def promoted(self) -> bool:
        """Whether B has proved better: the one case in which a pipeline goes on."""
        return self.decision == "promote_b"

    @property
    def reason(self) -> str:
        """In words."""
        return self.test.reason or ""

    @property
    def rule(self) -> str:
        """The rule that decided, empty where no rule did."""
        return self.test.verdict.rule if self.test.verdict else ""


@dataclass(frozen=True, kw_only=True)
class Report(Shape):
    """The decision report; ``evidence`` says whether all of it could be read."""

    test_id: str
    result: Test
    evidence: str = "away"
    changes: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evidence(Shape):
    """A page of evidence by tick; the next one begins after ``last``."""

    test_id: str
    configuration: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    ticks: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0
    complete: bool = False


@dataclass(frozen=True, kw_only=True)
class Replay(Shape):
    """Whether the stored evidence gives the recorded verdict again; ``same`` is None where it cannot be told."""

    test_id: str
    state: str = "complete"
    same: bool | None = None
    message: str = ""
    differences: list[str] = field(default_factory=list)
    recorded: Decided | None = None
    replayed: Decided | None = None


@dataclass(frozen=True, kw_only=True)
class HistoryPage(Shape):
    """Ended tests, newest first."""

    tests: list[Test] = field(default_factory=list)
    total_tests: int = 0


@dataclass(frozen=True, kw_only=True)
class Model(Shape):
    """A model over all its workers. ``by_worker`` is there when one model was asked for."""

    name: str
    state: str
    workers: int = 0
    ready_workers: int = 0
    engine: str = ""
    digest: str = ""
    reason: str = ""
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    in_use_by: list[str] = field(default_factory=list)
    entry: dict[str, Any] | None = None
    by_worker: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelChanged(Shape):
    """An order on a model that was taken; ``status`` says what for, ``message`` what else to know."""

    model: str
    status: str
    generation: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan(Shape):
    """Whether models would fit; by worker what they need and what is left."""

    fits: bool
    message: str = ""
    workers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Key(Shape):
    """A key without the key; where it was made just now, ``key`` has it, this once."""

    name: str
    role: str
    state: str = ""
    source: str = ""
    created_at: str | None = None
    expires_at: str | None = None
    previous_until: str | None = None
    ends_soon: bool = False
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Monitoring(Shape):
    """The monitor; while ``monitoring_active`` is False, verdicts only alert."""

    monitoring_active: bool
    check_interval_seconds: float
    status: str | None = None
    degraded: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Redriven(Shape):
    """Dead letters that were sent back, and why others were not."""

    redriven: int
    skipped: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AuditPage(Shape):
    """Who did what, newest first; ``more``: there are others that match."""

    records: list[dict[str, Any]] = field(default_factory=list)
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class AuditCheck(Shape):
    """A page of the check of the audit's chain; unless ``complete``, ask again with ``cursor``."""

    ok: bool
    complete: bool = False
    cursor: str = ""
    head: str | None = None
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Unit(Shape):
    """A page of what is held on one unit, or was erased; ``next`` is the cursor of the next, None after the last."""

    tests: list[dict[str, Any]] = field(default_factory=list)
    next: str | None = None
    remains: str | None = None


@dataclass(frozen=True)
class Event:
    """Something that happened: ``name`` is ``event``, ``rollback``, ``alert``, ``window`` or ``live``.

    ``reconnected`` is the client's own: the line was down, and what happened meanwhile has not been told.
    """

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
