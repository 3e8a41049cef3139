"""The record of a test: what happened to it, its evidence over time, and whether a replay agrees with its verdict.

`cypria.verdict.record` and `cypria.verdict.evidence` are answered by the monitor from WINDOWS and EVENTS; the report
and the replay are the API's.
"""

from typing import Any, Literal

from pydantic import Field

from schemas.v1.common import Message, ShareBp, TestStatus, UnixMs
from schemas.v1.experiment import Experiment, TestResult, VariantSummary, VerdictRecord
from schemas.v1.query import VerdictStatus
from schemas.v1.windows import Cell

EvidenceState = Literal["complete", "reading", "gone", "away"]
"""Read to its end; still being read; aged out or lost; nobody there to read it."""


class TestChange(Message):
    """One change of a test's state; ``kind`` is the event's (``started``, ``split_changed``, ``rolled_back`` ...) or
    ``rollback_requested``. ``id`` is the event's identity.
    """

    __test__ = False

    id: str
    at_ms: UnixMs
    kind: str
    version: int = 0
    status: TestStatus | None = None
    share_bp: ShareBp | None = None
    actor: str = ""
    reason: str | None = None
    rule: str | None = None


class Series(Message):
    """A test over time, by columns of equal length (at most 500 points), oldest first.

    A point closes an interval of ``step_ticks`` ticks at the broker's second ``seconds`` (Unix). Counts and the
    effect (of B on ``metric``, in percent, with its 95 % confidence sequence) are of the whole test up to there,
    ``log_e`` of the epoch, ``latency_ms`` (keys ``a.p50`` ... ``b.p99``) of one of at most 50 stretches of the test
    alone; null says unknown. ``limit`` is the ln E at which a guardrail with an equal share of the level fires; ``limits``
    has those of guardrails that have another one, by weight or in a later trial. ``ttft_ms`` is as ``latency_ms``;
    ``per_second`` (finished requests) and ``error_rate`` (percent of them) are of such stretches too, keys ``a`` and ``b``.
    """

    metric: str = "latency"
    step_ticks: int = 1
    seconds: list[int] = Field(default_factory=list)
    share_bp: list[int] = Field(default_factory=list)
    n_a: list[int] = Field(default_factory=list)
    n_b: list[int] = Field(default_factory=list)
    effect: list[float | None] = Field(default_factory=list)
    effect_low: list[float | None] = Field(default_factory=list)
    effect_high: list[float | None] = Field(default_factory=list)
    limit: list[float] = Field(default_factory=list)
    limits: dict[str, list[float | None]] = Field(default_factory=dict)
    log_e: dict[str, list[float | None]] = Field(default_factory=dict)
    latency_ms: dict[str, list[float | None]] = Field(default_factory=dict)
    ttft_ms: dict[str, list[float | None]] = Field(default_factory=dict)
    per_second: dict[str, list[float | None]] = Field(default_factory=dict)
    error_rate: dict[str, list[float | None]] = Field(default_factory=dict)


class RecordQuery(Message):
    """`cypria.verdict.record`: read a test's evidence from its start.

    ``until`` is the WINDOWS sequence that its verdict rests on; without it the evidence ends with the test.
    ``wait_ms`` is how long the monitor may take before it says that it is still reading. With ``evidence`` false
    nothing is read: the reply holds the configuration and the changes alone.
    """

    test_id: str
    until: int | None = Field(default=None, ge=0)
    wait_ms: int = Field(default=10_000, ge=0, le=60_000)
    evidence: bool = True


class RecordReply(Message):
    """What the evidence says. Status, series and verdict are of the evidence read so far; ``progress`` is from 0 to 1.
    ``recent`` is the series of the last ten minutes alone, in steps of five seconds.

    ``verdict`` is derived anew from the evidence, never copied from the test's result.
    """

    test_id: str
    state: EvidenceState = "complete"
    progress: float = 1.0
    message: str = ""
    configuration: Experiment | None = None
    changes: list[TestChange] = Field(default_factory=list)
    status: VerdictStatus | None = None
    series: Series | None = None
    recent: Series | None = None
    verdict: VerdictRecord | None = None
    metrics_summary: dict[str, VariantSummary] = Field(default_factory=dict)
    ticks: int = 0
    windows_seq: int = 0


class EvidenceQuery(Message):
    """`cypria.verdict.evidence`: a page of a test's evidence by tick. ``after`` is the ``last`` of the page before; 0
    begins with the test's start.
    """

    test_id: str
    after: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)
    until: int | None = Field(default=None, ge=0)


class EvidenceTick(Message):
    """One tick: the broker's second (Unix), the last WINDOWS sequence in it, and the test's cells."""

    second: int
    sequence: int
    cells: list[Cell] = Field(default_factory=list)


class EvidenceReply(Message):
    """A page: the configuration as of the decision, the changes of the split, and ticks in order.

    ``last`` is the next page's ``after``; ``complete`` when the evidence (so far, of a running test) ends here.
    """

    test_id: str
    configuration: Experiment
    changes: list[TestChange] = Field(default_factory=list)
    ticks: list[EvidenceTick] = Field(default_factory=list)
    last: int = 0
    complete: bool = False


class Replay(Message):
    """A recorded verdict and the one that the evidence gives now.

    ``same`` is null while the evidence is not complete or where no verdict rests on evidence; ``differences`` names the
    fields that differ, each with both values.
    """

    test_id: str
    state: EvidenceState = "complete"
    progress: float = 1.0
    message: str = ""
    same: bool | None = None
    differences: list[str] = Field(default_factory=list)
    recorded: VerdictRecord | None = None
    replayed: VerdictRecord | None = None
    ticks: int = 0


class Report(Message):
    """The decision report: the result, what the evidence said and when, what happened, and what could not be told."""

    test_id: str
    at_ms: UnixMs
    result: TestResult
    configuration: Experiment | None = None
    changes: list[TestChange] = Field(default_factory=list)
    status: VerdictStatus | None = None
    series: Series | None = None
    alerts: list[dict[str, Any]] = Field(default_factory=list)
    evidence: EvidenceState = "away"
    progress: float = 0.0
    notes: list[str] = Field(default_factory=list)
