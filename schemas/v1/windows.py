"""One second of aggregated evidence of one partition: the record that everything else derives from.

All sums are integers (microseconds, ln x 10**6, nano-dollars), so that no order of addition matters.
"""

from pydantic import Field

from schemas.v1.common import Message, Outcome, ShareBp, VariantName

OUTCOME_KINDS = (
    Outcome.TIMEOUT, Outcome.REJECTED, Outcome.ERROR_MID_STREAM, Outcome.EMPTY, Outcome.LENGTH, Outcome.INVALID_JSON,
    Outcome.INVALID_TOOL_CALL, Outcome.REPETITION,
)  # fmt: skip
"""Outcomes that are evidence of their own; a kind's place here is stored with unit hashes, so the order is for ever."""


class Moments(Message):
    """Additive summary of a positive quantity: n, sums, sums of logs (ln x * 10**6) and log bins (`schemas.sketch`)."""

    n: int = 0
    total: int = 0
    squares: int = 0
    ln: int = 0
    ln_squares: int = 0
    bins: dict[int, int] = Field(default_factory=dict)


class UnitEvidence(Message):
    """Evidence in which a unit counts once in each epoch (`new_test` and its errors: once in the whole test).

    ``new_test`` counts units when their first request is admitted, the others when a request finishes: an arm that is slow
    or hangs has its units all the same.

    ``*_bins`` are histograms of each unit's first request of the epoch; ``first_outcomes`` counts the units with a first
    outcome of each kind of `OUTCOME_KINDS`.
    """

    new: int = 0
    first_errors: int = 0
    first_client_errors: int = 0
    first_overdue: int = 0
    new_test: int = 0
    first_errors_test: int = 0
    latency_bins: dict[int, int] = Field(default_factory=dict)
    ttft_bins: dict[int, int] = Field(default_factory=dict)
    itl_bins: dict[int, int] = Field(default_factory=dict)
    cost_bins: dict[int, int] = Field(default_factory=dict)
    first_outcomes: dict[Outcome, int] = Field(default_factory=dict)


class Bucket(Message):
    """Sums of one of the 128 unit buckets: requests, errors, and latency, TTFT and cost on the ln scale (10**-6).

    Those of feedback count a unit's first value of each kind in the whole test.
    """

    n: int = 0
    errors: int = 0
    latency_n: int = 0
    latency_ln: int = 0
    ttft_n: int = 0
    ttft_ln: int = 0
    cost_n: int = 0
    cost_ln: int = 0
    thumbs_n: int = 0
    thumbs_up: int = 0
    conversion_n: int = 0
    conversions: int = 0
    score_n: int = 0
    score_micro: int = 0


class Cell(Message):
    """Sums of one test x variant x applied share x digest x unit epoch in one window.

    ``done`` counts finished requests without the callers' own errors, which are in ``outcomes`` only. ``feedback`` has
    the sums named in `schemas.feedback`.
    """

    test: str
    variant: VariantName
    share_bp: ShareBp
    epoch: int = Field(default=0, ge=0)
    digest: str = ""
    admitted: int = 0
    done: int = 0
    overdue: int = 0
    overdue_done: int = 0
    fallback: int = 0
    outcomes: dict[Outcome, int] = Field(default_factory=dict)
    latency: Moments = Field(default_factory=Moments)
    ttft: Moments = Field(default_factory=Moments)
    itl: Moments = Field(default_factory=Moments)
    cost: Moments = Field(default_factory=Moments)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    gpu_us: int = 0
    strata: dict[int, int] = Field(default_factory=dict)
    feedback: dict[str, int] = Field(default_factory=dict)
    units: UnitEvidence = Field(default_factory=UnitEvidence)
    buckets: dict[int, Bucket] = Field(default_factory=dict)


class Watermark(Message):
    """How far a writer has come in METRICS.

    ``stream_created`` (RFC 3339) tells a recreated stream from the old one; ``last_seq`` is the last
    METRICS sequence folded and ``last_time_ms`` its broker time, which tells it from another message that came
    under the same sequence after a power cut; ``batches`` is the highest batch number folded for each router epoch.
    """

    stream_created: str = ""
    last_seq: int = Field(default=0, ge=0)
    last_time_ms: int = Field(default=0, ge=0)
    batches: dict[str, int] = Field(default_factory=dict)


class NewUnits(Message):
    """Unit hashes first seen in this window, so that the seen-set can be rebuilt from WINDOWS; now and then known ones
    are carried again, so that rebuilding need not begin with the test (counts are in `UnitEvidence` only).

    Each set is base64 of little-endian uint64 hashes. Those of feedback and of ``outcomes`` have the kind of value, or of
    outcome, in their lowest three bits; ``feedback_ids`` are by the day (Unix) on which their tokens expire.
    """

    test: str
    epoch: int
    seen: str = ""
    errors: str = ""
    client_errors: str = ""
    overdue: str = ""
    seen_test: str = ""
    errors_test: str = ""
    outcomes: str = ""
    feedback_units: str = ""
    feedback_ids: dict[int, str] = Field(default_factory=dict)


class Window(Message):
    """One message on `cypria.window.<p>`; published every second, also when nothing happened."""

    partition: int = Field(ge=0)
    writer: str
    watermark: Watermark
    cells: list[Cell] = Field(default_factory=list)
    new_units: list[NewUnits] = Field(default_factory=list)
    rebuild_from: int = Field(default=0, ge=0)
    """WINDOWS sequence from which the seen-sets of running tests can be rebuilt; 0: from this message on."""
