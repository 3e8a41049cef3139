"""What an account of a test is made of: sentences for people with the figures behind them."""

from typing import Literal

from pydantic import BaseModel, Field

from schemas.v1.control import RampStatus
from schemas.v1.experiment import VariantSummary
from schemas.v1.query import EffectStatus

Tone = Literal["good", "wait", "bad", "plain"]
State = Literal["fired", "over", "near", "quiet", "worse", "high", "within", "open", "no_data"]


class Answer(BaseModel):
    """An answer to one of the questions people ask: a tone and one or two sentences."""

    tone: Tone = "plain"
    text: str


class GuardrailAccount(BaseModel):
    """One guardrail. Effect, its 95 % confidence sequence and the threshold are in ``effect_unit``: B's increase over A
    where it is ``relative``, else B's own figure. ``log_e`` is ln E, ``limit`` where it fires.
    """

    name: str
    title: str
    limit_text: str
    action: str
    action_text: str
    state: State
    tone: Tone
    state_text: str
    text: str
    relative: bool
    quantity: str = ""
    unit: str = ""
    value_a: float | None = None
    value_b: float | None = None
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    effect_unit: str = "%"
    threshold: float | None = None
    log_e: float = 0.0
    limit: float = 0.0
    n_a: int = 0
    n_b: int = 0


class ConditionAccount(BaseModel):
    """One condition of a promotion or of a ramp's next step; ``at_least`` says that it may need more requests."""

    name: str
    title: str
    met: bool
    text: str
    log_e: float | None = None
    limit: float | None = None
    needs_requests: int | None = None
    at_least: bool = False
    needs_minutes: float | None = None


class OutcomeAccount(BaseModel):
    """How many requests of each variant ended in one way, and their share of all that ended, in percent."""

    kind: str
    title: str
    bad: bool
    a: int
    b: int
    a_percent: float | None
    b_percent: float | None


class Occurrence(BaseModel):
    """One entry of the time line. ``split_percent`` is the split from then on, null where it says nothing of it."""

    id: str
    at_ms: int
    kind: str
    title: str
    tone: Tone = "plain"
    text: str = ""
    by: str = ""
    split_percent: float | None = None


class TestAccount(BaseModel):
    """One test, live or ended. ``actions`` are the commands that make sense now, whoever may give them.

    ``safety`` and ``promotion`` are of a live test and, as of its end, of an ended one; ``why`` is of an ended one.
    ``timeline`` (newest first), ``configuration`` and ``notes`` are only where one test is asked for. ``reading``: how
    much of the evidence of an ended one has been read again (0 to 1), while the rest is still being read; guardrails
    and conditions follow.
    """

    __test__ = False

    test_id: str
    version: int = 0
    live: bool
    status: str
    status_text: str
    tone: Tone
    headline: str
    subline: str = ""
    model_a: str
    model_b: str
    split_percent: float
    effective_percent: float | None = None
    started_at: str | None = None
    ended_at: str | None = None
    starts_at: str | None = None
    elapsed_minutes: float | None = None
    remaining_minutes: float | None = None
    rollback_at: str | None = None
    retry_at: str | None = None
    auto_rollback: bool | None = None
    decision: str | None = None
    safety: Answer | None = None
    why: Answer | None = None
    promotion: Answer | None = None
    conditions: list[ConditionAccount] = Field(default_factory=list)
    next_step: Answer | None = None
    ramp: RampStatus | None = None
    effect: EffectStatus | None = None
    arms: dict[str, VariantSummary] = Field(default_factory=dict)
    outcomes: list[OutcomeAccount] = Field(default_factory=list)
    guardrails: list[GuardrailAccount] = Field(default_factory=list)
    actions: list[str] = Field(default_factory=list)
    degraded: list[str] = Field(default_factory=list)
    tags: dict[str, str] = Field(default_factory=dict)
    timeline: list[Occurrence] = Field(default_factory=list)
    configuration: list[tuple[str, str]] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    reading: float | None = None
