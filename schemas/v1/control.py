"""The control API: the same models serve HTTP and `cypria.control.<verb>`. Unknown fields are refused."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from schemas.feedback import MAX_SCORE, MIN_SCORE
from schemas.v1.common import Message, ModelName
from schemas.v1.experiment import MAX_MS, Gate, GuardrailAction, GuardrailMetric, VariantSummary


class Command(BaseModel):
    """Base of what callers send: a misspelt field is an error, not a default."""

    model_config = ConfigDict(extra="forbid")


class SuccessCriteriaPatch(Command):
    """Overrides of `ab_testing.success_criteria`; what is left out comes from the configuration."""

    min_improvement_threshold: float | None = Field(default=None, ge=0, le=1000)
    max_error_rate_increase_percent: float | None = Field(default=None, ge=0, le=10_000)
    max_latency_increase_percent: float | None = Field(default=None, ge=0, le=10_000)
    min_sample_size: int | None = Field(default=None, ge=1, le=1_000_000_000)
    negligible_error_rate_percent: float | None = Field(default=None, ge=0, lt=100)


class FailureCriteriaPatch(Command):
    """Overrides of `ab_testing.failure_criteria`."""

    max_error_rate_percent: float | None = Field(default=None, gt=0, le=100)
    max_latency_ms: float | None = Field(default=None, gt=0, le=MAX_MS)
    max_consecutive_errors: int | None = Field(default=None, ge=1, le=100_000)


MAX_TAGS = 64
"""Tags travel with every version of a test and with its alerts: an entry over the bus's `max_payload` could be
written once and then neither stopped nor rolled back."""
TagName = Annotated[str, Field(min_length=1, max_length=128)]
TagValue = Annotated[str, Field(max_length=1024)]


PRIMARY_METRICS = ("latency", "ttft", "cost", "error_rate", "thumbs", "conversion", "score")


def _known_metric(value: str) -> str:
    if value not in PRIMARY_METRICS:
        raise ValueError(f"there is no metric '{value[:64]}': use one of {', '.join(PRIMARY_METRICS)}")
    return value


PrimaryMetric = Annotated[str, AfterValidator(_known_metric)]


class GuardrailSpec(Command):
    """One guardrail of a start request; it replaces the default guardrail of its metric, or adds one."""

    metric: GuardrailMetric
    margin_percent: float | None = Field(
        default=None, ge=0, le=10_000,
        description="B's increase over A in percent that the guardrail allows; default: max_latency_increase_percent of "
        "success_criteria for latency, ttft, inter_token and cost, else max_error_rate_increase_percent",
    )  # fmt: skip
    action: GuardrailAction = Field(default="rollback", description="what the guardrail does when it fires")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="its share of the family level, relative to 1 for each other guardrail"
    )


class RampStepSpec(Command):
    """One step of a ramp; what is left out comes from the ramp."""

    traffic_split_percent: float = Field(gt=0, le=100, description="share of B, above the step before")
    soak_minutes: float | None = Field(default=None, ge=0, le=525_600)
    min_requests: int | None = Field(default=None, ge=0, le=1_000_000_000)
    gate: Gate | None = None


def _step(value: Any) -> Any:
    """A bare number is a step's split."""
    bare = isinstance(value, int | float) and not isinstance(value, bool)
    return {"traffic_split_percent": value} if bare else value


def _ramp(value: Any) -> Any:
    """A bare list is a ramp's steps."""
    return {"steps": value} if isinstance(value, list) else value


class RampSpec(Command):
    """Steps of rising splits, and what holds for the steps that do not say otherwise."""

    steps: list[Annotated[RampStepSpec, BeforeValidator(_step)]] = Field(
        min_length=1, max_length=50, description="a bare number is a step with that split"
    )
    soak_minutes: float | None = Field(
        default=None, ge=0, le=525_600, description="minutes at a step, at least; default: a tenth of the duration"
    )
    min_requests: int | None = Field(
        default=None, ge=0, le=1_000_000_000,
        description="finished requests of B at a step, at least; default: min_sample_size of success_criteria",
    )  # fmt: skip
    gate: Gate = Field(
        default="statistical",
        description="before the next step: nothing more (none), no guardrail near firing (statistical), or that and an "
        "operator's approval (manual)",
    )


class RetrySpec(Command):
    """How often and when to go back up after a step down."""

    max_retries: int = Field(default=2, ge=0, le=20, description="the step down after the last retry is a rollback")
    backoff_minutes: float = Field(
        default=10.0, gt=0, le=525_600, description="before the first retry; twice as long before each further one"
    )


Preset = Literal["conservative", "aggressive"]
ChangeType = Literal["bug_fix", "performance_optimization", "model_update", "architecture_change"]


class StartRequest(Command):
    """`POST /v1/ab-testing/start`."""

    later: ClassVar[tuple[str, ...]] = ("variants", "shadow", "baseline_percent")
    """Fields that a later version brings: refused with that word, so that nobody looks for a slip of the pen."""

    model_a: ModelName
    model_b: ModelName
    traffic_split_percent: float | None = Field(default=None, ge=0, le=100)
    test_duration_minutes: float | None = Field(default=None, gt=0, le=525_600)
    auto_rollback: bool = True
    success_criteria: SuccessCriteriaPatch | None = None
    failure_criteria: FailureCriteriaPatch | None = None
    primary_metric: PrimaryMetric | None = None
    guardrails: list[GuardrailSpec] | None = Field(default=None, max_length=32)
    ramp: Annotated[RampSpec | None, BeforeValidator(_ramp)] = Field(
        default=None, description="a bare list is a ramp with these steps, such as [1, 5, 25, 50]"
    )
    retry: RetrySpec | None = None
    preset: Preset | None = Field(
        default=None,
        description="success criteria and, unless traffic_split_percent or ramp is given, a ramp: 1, 5, 10, 25, 50 % "
        "(conservative) or 10, 50 % (aggressive); what the request itself gives goes first",
    )
    change_type: ChangeType | None = Field(
        default=None,
        description="what B changes: recommended duration and split, for what of them is not given",
    )
    min_duration_minutes: float | None = Field(
        default=None, ge=0, le=525_600, description="nothing is promoted before; default: of the change type, else 0"
    )
    schedule: str | None = Field(default=None, max_length=64)
    tags: dict[TagName, TagValue] = Field(default_factory=dict, max_length=MAX_TAGS)


class StartReply(Message):
    """What start answers."""

    test_id: str
    status: str = "started"


class TestRef(Command):
    """Bodies that name a test or mean the running one."""

    __test__ = False

    test_id: str | None = Field(default=None, min_length=1, max_length=128)


class StopCommand(TestRef):
    """`POST /v1/ab-testing/stop`."""

    reason: str | None = Field(default=None, max_length=2000)


class RollbackCommand(TestRef):
    """`POST /v1/ab-testing/rollback`."""

    speed: str = Field(default="immediate", pattern="^(immediate|gradual)$")
    at: str | None = None
    reason: str | None = Field(default=None, max_length=2000)


class SplitCommand(TestRef):
    """`PATCH /v1/ab-testing/traffic-split`."""

    traffic_split_percent: float = Field(ge=0, le=100)


class FeedbackCommand(Command):
    """`POST /v1/ab-testing/feedback`: what a user thought of one response; score from 1 (bad) to 5 (good)."""

    token: str = Field(min_length=1, max_length=1024)
    score: float | None = Field(default=None, ge=MIN_SCORE, le=MAX_SCORE)
    thumbs: Literal["up", "down"] | None = None
    converted: bool | None = None


class FeedbackReply(Message):
    """What feedback answers once it is stored."""

    status: str = "recorded"


class MonitoringCommand(Command):
    """`POST /v1/ab-testing/monitoring/start|stop`."""

    check_interval_seconds: float | None = Field(default=None, gt=0, le=86_400)


class MonitoringState(Message):
    """KV bucket `control`, key `monitoring`."""

    active: bool = True
    check_interval_seconds: float = Field(default=30.0, gt=0)
    version: int = 0


class RampStatus(Message):
    """Where a ramp stands. Shares in percent."""

    step: int = Field(description="the present step, counted from 1")
    of: int = Field(description="how many steps there are")
    shares: list[float] = Field(description="the split of each step")
    soak_left_minutes: float = Field(description="until the present step has soaked; a resumed test soaks anew")
    min_requests: int = Field(description="finished requests of B that the present step needs")
    gate: Gate = Field(description="of the present step")
    approved: bool = Field(description="whether the present step's manual gate has been opened")
    held: str | None = Field(default=None, description="why the ramp goes no further by itself")


class StatusReply(Message):
    """`GET /v1/ab-testing/status`: the spec's fields first, all null when nothing runs."""

    test_id: str | None = None
    status: str | None = None
    elapsed_minutes: float | None = None
    traffic_split_percent: float | None = None
    metrics: dict[str, VariantSummary] | None = None
    models: dict[str, str] | None = None
    effective_split_percent: float | None = None
    remaining_minutes: float | None = None
    auto_rollback: bool | None = None
    verdict: dict[str, Any] | None = None
    digests: dict[str, str] | None = None
    version: int | None = None
    running_tests: list[str] | None = None
    starts_at: str | None = None
    rollback_at: str | None = None
    ramp: RampStatus | None = Field(default=None, description="of a test with a ramp")
    retry_at: str | None = Field(default=None, description="when a step down is to be taken back")
    waiting_for: str | None = Field(default=None, description="what the next change of the split waits for")
    degraded: list[str] | None = None
