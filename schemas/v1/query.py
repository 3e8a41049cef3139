"""Questions about the past (`cypria.query.<name>`) and about verdicts (`cypria.verdict.<name>`), and their answers.

Every answer is either the reply model or `QueryError`; its NATS header `Cypria-Error: 1` tells which.
"""

from typing import Any

from pydantic import Field

from schemas.v1.common import Message
from schemas.v1.experiment import TestResult, VariantSummary, VerdictRecord
from schemas.v1.windows import Window


class QueryError(Message):
    """Why a question could not be answered."""

    message: str
    code: str = "unavailable"


class TotalsQuery(Message):
    """`cypria.query.totals`: totals of some tests since they began."""

    tests: list[str]


class TotalsReply(Message):
    """By test, by variant (``a``, ``b``); a test without any fact is absent."""

    tests: dict[str, dict[str, VariantSummary]] = Field(default_factory=dict)


class HistoryQuery(Message):
    """`cypria.query.history`: ended tests, newest first."""

    limit: int = Field(default=50, ge=1, le=1000)
    offset: int = Field(default=0, ge=0)


class HistoryReply(Message):
    """A page of results and how many there are in all."""

    tests: list[TestResult] = Field(default_factory=list)
    total_tests: int = 0


class TestQuery(Message):
    """`cypria.query.test`: one test by id."""

    __test__ = False

    test_id: str


class TestReply(Message):
    """The result, or null when there is no such test."""

    __test__ = False

    result: TestResult | None = None


class AlertsQuery(Message):
    """`cypria.query.alerts` (answered by alerts): newest first."""

    limit: int = Field(default=50, ge=1, le=10_000)
    test_id: str | None = None


class AlertsReply(Message):
    """Alerts as they were raised, with the state of their delivery."""

    alerts: list[dict[str, Any]] = Field(default_factory=list)
    total_alerts: int = 0


class AlertTestReply(Message):
    """`cypria.alerts.test` (answered by alerts): a test alert to each destination, past its routing.

    By destination: ``destination``, ``type``, ``outcome`` (``sent`` or ``failed``), ``reason`` or null, ``seconds``.
    """

    destinations: list[dict[str, Any]] = Field(default_factory=list)


class RedriveQuery(Message):
    """`cypria.alerts.redrive` (answered by alerts): dead letters of one destination, or of all, back into ALERTS."""

    destination: str | None = None


class RedriveReply(Message):
    """How many were sent back, and by letter why the others were not (``destination``, ``alert``, ``reason``; of
    integrations ``integration``, ``event``, ``reason``).
    """

    redriven: int = 0
    skipped: list[dict[str, Any]] = Field(default_factory=list)


class IntegrationQuery(Message):
    """`cypria.alerts.integrations-test` and `.integrations-redrive` (answered by alerts): of one integration, or of all."""

    integration: str | None = None


class IntegrationsReply(Message):
    """`cypria.alerts.integrations` (answered by alerts): how each integration stands.

    By integration: ``integration``, ``type``, ``events``, ``tests``, ``window_seconds``, ``waiting``, ``in_hand``,
    ``dead_letters`` (not sent back yet) and ``last``: the last message's ``event``, ``kind``, ``status``, ``attempts``,
    ``reason`` and ``at_ms``, or null.
    """

    integrations: list[dict[str, Any]] = Field(default_factory=list)


class IntegrationsTestReply(Message):
    """Whether each integration could be told something; nothing is acted upon.

    By integration: ``integration``, ``type``, ``outcome`` (``sent`` or ``failed``), ``reason`` or null, ``seconds``.
    """

    integrations: list[dict[str, Any]] = Field(default_factory=list)


class AuditQuery(Message):
    """`cypria.query.audit`: newest first."""

    since: str | None = None
    actor: str | None = None
    limit: int = Field(default=100, ge=1, le=10_000)


class AuditReply(Message):
    """Audit records; ``more``: there are others that match, left out for the limit or the size of a message."""

    records: list[dict[str, Any]] = Field(default_factory=list)
    more: bool = False


class AuditVerifyQuery(Message):
    """`cypria.query.audit_verify`: whether the chain of audit records is whole, page by page.

    ``cursor`` is the one of the answer before, empty to begin. ``head`` is a head that was written down,
    ``SEQUENCE:HASH``: the chain must go through it. ``limit`` bounds the records of one page.
    """

    cursor: str = Field(default="", max_length=256)
    head: str | None = Field(default=None, max_length=96)
    limit: int = Field(default=5000, ge=1, le=20_000)


class AuditProblem(Message):
    """The first place of the chain that does not fit.

    ``kind`` is ``changed``, ``removed``, ``front_missing``, ``tail_missing``, ``never_taken_in``, ``differs`` (from what AUDIT
    holds) or ``pinned``, and ``deleted`` of what is gone from AUDIT alone; ``first`` to ``last`` are sequences of the stream
    that was made at ``stream``.
    """

    kind: str
    stream: str = ""
    first: int = 0
    last: int = 0
    message: str


class AuditVerification(Message):
    """A page of the check. ``complete``: there is no more to check; else ask again with ``cursor``.

    ``checked`` records of this page were computed anew and ``compared`` with what AUDIT holds; ``total`` is how many records
    there are, in the first answer only. ``head`` is where the chain has come to, ``SEQUENCE:HASH``, null while there is no
    record; kept elsewhere, it proves later that nothing up to there was changed. ``deleted`` are records of this page that
    the chain proves and that were deleted from AUDIT, the first ten places of them; they leave ``ok`` as it is.
    """

    ok: bool = True
    complete: bool = False
    cursor: str = ""
    checked: int = 0
    compared: int = 0
    total: int = 0
    head: str | None = None
    problem: AuditProblem | None = None
    deleted: list[AuditProblem] = Field(default_factory=list)


class VerdictQuery(Message):
    """`cypria.verdict.status`: how the evidence stands now."""

    test_id: str


class GuardrailStatus(Message):
    """One guardrail: ln E against its limit, and what it waits for.

    ``unit`` is that of ``value_a`` and ``value_b``: ``%``, ``ms`` or ``$``. ``times`` is how often its action (a pause or
    a step down) was taken, by whichever guardrail; it is quiet until ``quiet_until_ms`` after a step down, null when not.

    ``effect`` with its 95 % confidence sequence (null: nothing is excluded on that side) is in the unit of ``threshold``:
    B's increase over A in percent where the guardrail is ``relative``, else B's own figure. ``metric`` is what it
    watches, ``quantity`` what the values are (``share``, ``mean``, ``median``, ``p95``, ``p99``), ``n_a`` and ``n_b`` over how
    many observations, ``bad_b`` how many units of B look bad; ``text`` says it in words. ``near``: its evidence is within a
    factor of 10 of the limit, or beyond.
    """

    name: str
    action: str
    log_e: float
    limit: float
    fired: bool = False
    warned: bool = False
    value_a: float | None = None
    value_b: float | None = None
    threshold: float | None = None
    needs_requests: int | None = None
    unit: str = ""
    times: int = 0
    quiet_until_ms: int | None = None
    metric: str = ""
    relative: bool = True
    quantity: str = ""
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    n_a: int = 0
    n_b: int = 0
    bad_b: int = 0
    text: str = ""
    near: bool = False


class EffectStatus(Message):
    """B's effect on the primary metric in percent, with its 95 % confidence sequence, against what a promotion asks for.

    ``asked`` is negative where less is better. ``hold`` says why the effect cannot be judged yet, null where it can.
    """

    metric: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    asked: float = 0.0
    more_is_better: bool = False
    hold: str | None = None


class RampOutlook(Message):
    """What the split of a test does next by itself: the next step of a ramp, or a retry after a step down.

    ``due`` is ``advance`` or ``retry`` while that is being asked for, else empty; ``waits_for`` is a sentence for people.
    ``conditions`` have ``name``, ``met``, ``text`` and, where known, ``needs_requests`` and ``needs_minutes``.
    """

    due: str = ""
    waits_for: str = ""
    conditions: list[dict[str, Any]] = Field(default_factory=list)


class VerdictStatus(Message):
    """How the evidence stands: guardrails, sample-ratio mismatch, promotion conditions and the tick they stand at.

    ``ramp`` is null where the split does not change by itself.
    """

    test_id: str
    tick: int | None = None
    windows_seq: int = 0
    n_a: int = 0
    n_b: int = 0
    guardrails: list[GuardrailStatus] = Field(default_factory=list)
    promotion: dict[str, Any] = Field(default_factory=dict)
    summary: str = ""
    ramp: RampOutlook | None = None
    effect: EffectStatus | None = None


class FinalVerdictQuery(Message):
    """`cypria.verdict.final`: decide now. ``flushed`` is the highest batch number acknowledged, by router epoch and
    partition, that the evidence must contain; ``deadline_ms`` is how long the monitor may wait for it.
    """

    test_id: str
    flushed: dict[str, dict[int, int]] = Field(default_factory=dict)
    deadline_ms: int = 2500


class FinalVerdict(Message):
    """The decision and the totals it rests on."""

    verdict: VerdictRecord
    metrics_summary: dict[str, VariantSummary] = Field(default_factory=dict)
    complete: bool = True


class MonitoringStatus(Message):
    """`cypria.verdict.monitoring`: the health of the monitor itself."""

    monitoring_active: bool
    check_interval_seconds: float
    leader_of: list[str] = Field(default_factory=list)
    last_check: str | None = None
    checks_total: int = 0
    consecutive_check_failures: int = 0
    windows_seq: int = 0
    lag_seconds: float | None = None


class Lease(Message):
    """`cypria.lease.<test_id>` every second: a counter that grows while a monitor watches the test."""

    test_id: str
    counter: int
    holder: str


class WindowsQuery(Message):
    """`cypria.query.windows`: the evidence of a test as it is stored, oldest first, page by page.

    ``after`` is the WINDOWS sequence that the last page ended with; 0 begins with the test's start.
    """

    test_id: str
    after: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=5000)


class StoredWindow(Message):
    """A window with its place in WINDOWS and the broker's time; only the cells of the test asked for, no unit hashes."""

    sequence: int
    at_ms: int
    window: Window


class WindowsReply(Message):
    """A page. ``last`` is what the next page's ``after`` must be; ``complete`` when the stream's end was reached."""

    windows: list[StoredWindow] = Field(default_factory=list)
    last: int = 0
    complete: bool = True
