"""An experiment as it is stored in the KV bucket `experiments`, one entry for each ``model_a``."""

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.v1.common import LIVE, Decision, Message, ShareBp, TestStatus, UnixMs

SLOTS = 10_000
UNIT_BUCKETS = 128
MAX_MS = 1e9
"""Limits in milliseconds end below eleven days: JSON has no infinity, and an entry that holds one reads as null."""


class SuccessCriteria(Message):
    """What a promotion needs. Percentages are relative increases, as in the spec.

    ``negligible_error_rate_percent`` is an error rate instead: B's errors need no comparison with A's once they are
    shown to be at most that; 0 (and whatever was written before there was such a rate): they always need it.
    """

    min_improvement_threshold: float = Field(default=5.0, ge=0, le=1000)
    max_error_rate_increase_percent: float = Field(default=50.0, ge=0, le=10_000)
    max_latency_increase_percent: float = Field(default=20.0, ge=0, le=10_000)
    min_sample_size: int = Field(default=100, ge=1, le=1_000_000_000)
    negligible_error_rate_percent: float = Field(default=0.0, ge=0, lt=100)


class FailureCriteria(Message):
    """Absolute limits of the canary: errors in percent, mean latency in milliseconds."""

    max_error_rate_percent: float = Field(default=5.0, gt=0, le=100)
    max_latency_ms: float = Field(default=5000.0, gt=0, le=MAX_MS)
    max_consecutive_errors: int = Field(default=10, ge=1, le=100_000)


class Thresholds(Message):
    """Rollback triggers 1 and 2, and their warnings: errors in percent, mean latency in milliseconds."""

    critical_error_rate: float = Field(default=10.0, gt=0, le=100)
    warning_error_rate: float = Field(default=5.0, gt=0, le=100)
    critical_latency_ms: float = Field(default=3000.0, gt=0, le=MAX_MS)
    warning_latency_ms: float = Field(default=1500.0, gt=0, le=MAX_MS)

    @model_validator(mode="after")
    def _warnings_come_first(self) -> "Thresholds":
        for quantity in ("error_rate", "latency_ms"):
            if getattr(self, f"warning_{quantity}") > getattr(self, f"critical_{quantity}"):
                raise ValueError(
                    f"warning_{quantity} is above critical_{quantity}: lower the warning or raise the critical limit"
                )
        return self


GuardrailMetric = Literal[
    "error_rate", "client_error_rate", "overdue", "latency", "ttft", "inter_token", "cost", "thumbs_down",
    "timeout", "rejected", "error_mid_stream", "empty", "length", "invalid_json", "invalid_tool_call", "repetition",
]  # fmt: skip
"""What a guardrail can watch; those from ``timeout`` on are kinds of outcome (`schemas.v1.common.Outcome`)."""

GuardrailAction = Literal["warn", "pause", "step_down", "rollback"]
"""What a guardrail that fires does, mildest first."""

Gate = Literal["none", "statistical", "manual"]
"""What a ramp step needs beyond soak and sample: nothing, no guardrail near firing, or that and an approval."""


class Guardrail(Message):
    """A guardrail that the operator named: B's increase over A in percent, its action, its share of the level.

    ``weight`` is relative to the other guardrails' (1 each): alpha_k = alpha * weight / sum of weights.
    """

    metric: GuardrailMetric
    margin_percent: float = Field(ge=0, le=10_000)
    action: GuardrailAction = "rollback"
    weight: float = Field(default=1.0, gt=0, le=100)


class RampStep(Message):
    """One share of a ramp, and what must hold before the next one: minutes, requests of B at this share, and a gate."""

    share_bp: ShareBp
    soak_minutes: float = Field(default=10.0, ge=0, le=525_600)
    min_requests: int = Field(default=100, ge=0, le=1_000_000_000)
    gate: Gate = "statistical"


class Ramp(Message):
    """Steps of rising shares; ``step`` is the index of the present one, which began at ``since_ms``.

    ``approved`` is the index of the last step whose manual gate an operator opened, -1 for none; ``held`` says why
    the ramp goes no further by itself (an operator set the split), empty while it does.
    """

    steps: list[RampStep] = Field(min_length=1, max_length=50)
    step: int = Field(default=0, ge=0)
    since_ms: UnixMs = 0
    approved: int = Field(default=-1, ge=-1)
    held: str = ""


class RetryPolicy(Message):
    """After a step down: back to the share before it after ``backoff_minutes``, twice as long each time.

    The step down after the last retry is a rollback.
    """

    max_retries: int = Field(default=2, ge=0, le=20)
    backoff_minutes: float = Field(default=10.0, gt=0, le=525_600)


class VerdictRecord(Message):
    """Why a decision was taken, with everything a replay must find again."""

    decision: Decision
    reason: str
    rule: str
    at_ms: UnixMs
    tick: int | None = None
    value: float | None = None
    bound: float | None = None
    threshold: float | None = None
    log_e: float | None = None
    n_a: int = 0
    n_b: int = 0
    split_bp: ShareBp = 0
    digests: dict[str, str] = Field(default_factory=dict)
    config_hash: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class VariantSummary(Message):
    """Totals of one variant as the API shows them; all rates in percent, cost in dollars.

    Feedback counts answers, the first of each kind for each response: ``thumbs_up_rate`` of all thumbs,
    ``satisfaction_score`` the mean of ``satisfaction_count`` scores, ``conversion_rate`` of the ``conversion_count``
    answers that say whether there was a conversion. Tokens per GPU second are generated tokens.
    ``digests`` counts finished requests by the digest of what served them, where its engine tells one: two in one
    variant are two models.
    """

    request_count: int = 0
    error_rate: float = 0.0
    avg_latency_ms: float | None = None
    successful_requests: int = 0
    error_count: int = 0
    client_errors: int = 0
    client_cancels: int = 0
    admitted: int = 0
    in_flight: int = 0
    overdue: int = 0
    fallback_count: int = 0
    success_rate: float | None = None
    throughput_rps: float = 0.0
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    avg_ttft_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    ttft_p99_ms: float | None = None
    avg_inter_token_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    outcomes: dict[str, int] = Field(default_factory=dict)
    units: int = 0
    thumbs_up: int = 0
    thumbs_down: int = 0
    thumbs_up_rate: float | None = None
    satisfaction_count: int = 0
    satisfaction_score: float | None = None
    conversion_count: int = 0
    conversions: int = 0
    conversion_rate: float | None = None
    gpu_seconds: float = 0.0
    cost_per_request: float | None = None
    tokens_per_gpu_second: float | None = None
    cached_tokens: int = 0
    digests: dict[str, int] = Field(default_factory=dict)


class TestResult(Message):
    """A test that ended, in the spec's shape plus what a record needs."""

    __test__ = False

    test_id: str
    status: TestStatus
    decision: Decision | None = None
    reason: str | None = None
    metrics_summary: dict[str, VariantSummary] = Field(default_factory=dict)
    start_time: str | None = None
    end_time: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    traffic_split_percent: float = 0.0
    verdict: VerdictRecord | None = None
    tags: dict[str, str] = Field(default_factory=dict)
    version: int = 0


class StopRequest(Message):
    """A stop in progress: the canary already gets nothing, the last facts and the verdict are awaited."""

    reason: str
    actor: str
    at_ms: UnixMs


class RollbackOrder(Message):
    """Who asked for a rollback, by which rule, decided on which version of the entry."""

    rule: str
    reason: str
    actor: str
    at_ms: UnixMs
    decided_on: int = 0
    verdict: VerdictRecord | None = None


class ScheduledRollback(Message):
    """A rollback ordered for a later time; ``order.at_ms`` is when it was ordered, ``at_ms`` when it is due."""

    at_ms: UnixMs
    speed: str = "immediate"
    order: RollbackOrder


class Setback(Message):
    """Steps down so far: how many, the share and ramp step to retry at, since when, and when a retry is due.

    ``retry_at_ms`` is None while no retry is due: it has been made, or there will be none.
    """

    count: int = Field(default=0, ge=0)
    from_bp: ShareBp = 0
    from_step: int = Field(default=0, ge=0)
    since_ms: UnixMs = 0
    retry_at_ms: UnixMs | None = None
    rule: str = ""


class Descent(Message):
    """A reduction under way, in steps that the stable model can take: down to ``target_bp``, at 0 a rollback.

    ``waiting`` says what the next step waits for, empty when for nothing but its time; ``stepped_ms`` is when the last
    step was made, 0 before the first.
    """

    target_bp: ShareBp = 0
    waiting: str = ""
    stepped_ms: UnixMs = 0


class OutboxEvent(Message):
    """An event that the entry's writer has yet to publish; ``id`` is ``<test>.<version>.<n>``."""

    id: str
    subject: str
    type: str
    at_ms: UnixMs
    data: dict[str, Any]


class Experiment(Message):
    """State of the current (or last) test of one ``model_a``.

    ``version`` rises with every change; ``share_bp`` is the configured share of B; ``slots`` are B's hash
    slots as half-open ranges; ``recent`` keeps the results of the tests that this entry held before, newest
    first, until the history has surely taken them.
    """

    test_id: str
    version: int = Field(default=1, ge=1)
    status: TestStatus
    model_a: str
    model_b: str
    share_bp: ShareBp
    slots: list[tuple[int, int]] = Field(default_factory=list)
    salt: str
    unit_salt_version: int = 1
    created_ms: UnixMs
    started_ms: UnixMs | None = None
    ends_ms: UnixMs | None = None
    ended_ms: UnixMs | None = None
    duration_minutes: float = Field(gt=0)
    auto_rollback: bool = True
    success_criteria: SuccessCriteria = Field(default_factory=SuccessCriteria)
    failure_criteria: FailureCriteria = Field(default_factory=FailureCriteria)
    thresholds: Thresholds = Field(default_factory=Thresholds)
    policies: dict[str, Any] = Field(default_factory=dict)
    check_interval_seconds: float = Field(default=30.0, gt=0)
    primary_metric: str = "latency"
    guardrails: list[Guardrail] = Field(default_factory=list)
    """Those the operator named; each replaces the default guardrail of its metric or adds one."""
    preset: str = ""
    change_type: str = ""
    """Where criteria, ramp and times came from that the operator did not give; they are not read again."""
    min_duration_minutes: float = Field(default=0.0, ge=0)
    """Before this much of the test has passed nothing is promoted."""
    ramp: Ramp | None = None
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    setback: Setback | None = None
    descent: Descent | None = None
    alpha: float = Field(default=0.01, gt=0, lt=1)
    configured: list[str] = Field(default_factory=list)
    """Limits that the operator named (``failure_criteria.max_latency_ms`` ...): each is a guardrail of its own."""
    digests: dict[str, str] = Field(default_factory=dict)
    config_hash: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    actor: str = ""
    stopping: StopRequest | None = None
    rollback: RollbackOrder | None = None
    rollback_at: ScheduledRollback | None = None
    result: TestResult | None = None
    recent: list[TestResult] = Field(default_factory=list)
    outbox: list[OutboxEvent] = Field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether the test has yet to end."""
        return self.status in LIVE

    @property
    def assigning(self) -> bool:
        """Whether requests are assigned to this test now."""
        return self.status in {TestStatus.RUNNING, TestStatus.PAUSED, TestStatus.ROLLING_BACK} and self.stopping is None

    @property
    def configuration(self) -> "Experiment":
        """What the test is judged by and may be shown to everybody: without salt, slots, outbox and results."""
        bare: dict[str, Any] = {
            "salt": "", "slots": [], "stopping": None, "rollback": None, "result": None, "recent": [], "outbox": [],
        }  # fmt: skip
        return self.model_copy(update=bare)

    @property
    def duration_seconds(self) -> int:
        """Planned duration in whole seconds, at least 1."""
        return max(1, round(self.duration_minutes * 60))

    @property
    def epoch_seconds(self) -> int:
        """Length of a unit epoch: 24 epochs for a test, fewer when each would last less than ten minutes."""
        count = max(1, min(24, self.duration_seconds // 600))
        return -(-self.duration_seconds // count)
