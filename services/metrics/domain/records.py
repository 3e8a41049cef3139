"""The same messages as `schemas.v1.facts` and `schemas.v1.windows`, as msgspec structs.

Validating facts with pydantic costs several times what folding them does; a test holds both readings equal
(`tests/unit/metrics/test_records.py`).
"""

from typing import Annotated

import msgspec

from schemas.v1.common import Outcome

Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[int, msgspec.Meta(ge=0, le=10_000)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
Variant = Annotated[str, msgspec.Meta(pattern="^[a-z]\\Z")]


class Fact(msgspec.Struct, gc=False):
    """`schemas.v1.facts.Fact`."""

    test: str
    variant: Variant
    share_bp: Share
    unit: Hash
    sticky: bool = True
    kind: Annotated[str, msgspec.Meta(pattern="^(final|overdue)\\Z")] = "final"
    outcome: Outcome = Outcome.OK
    was_overdue: bool = False
    fallback: bool = False
    latency_us: Count | None = None
    ttft_us: Count | None = None
    itl_us: Count | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cached_tokens: Count = 0
    cost_nano: Count = 0
    gpu_us: Count = 0
    digest: str = ""
    stratum: Annotated[int, msgspec.Meta(ge=0, le=63)] = 0


class Feedback(msgspec.Struct, gc=False):
    """`schemas.v1.facts.Feedback`."""

    test: str
    variant: Variant
    share_bp: Share
    unit: Hash
    id: Hash
    expires_s: Count
    sticky: bool = True
    thumbs_up: bool | None = None
    converted: bool | None = None
    score_micro: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] | None = None


class Admitted(msgspec.Struct, gc=False):
    """`schemas.v1.facts.Admitted`."""

    test: str
    variant: Variant
    share_bp: Share
    count: Annotated[int, msgspec.Meta(ge=1)]
    alone: Count = 0
    units: list[Hash] = []


class TestClock(msgspec.Struct, gc=False):
    """`schemas.v1.facts.TestClock`."""

    __test__ = False

    started_ms: Count
    epoch_seconds: Annotated[int, msgspec.Meta(ge=1)]


class FactBatch(msgspec.Struct):
    """`schemas.v1.facts.FactBatch`."""

    router_epoch: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    partition: Count
    n: Annotated[int, msgspec.Meta(ge=1)]
    tests: dict[str, TestClock] = {}
    admitted: list[Admitted] = []
    facts: list[Fact] = []
    feedback: list[Feedback] = []
    admits_units: bool = False


class Moments(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.Moments`."""

    n: int = 0
    total: int = 0
    squares: int = 0
    ln: int = 0
    ln_squares: int = 0
    bins: dict[int, int] = {}


class UnitEvidence(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.UnitEvidence`."""

    new: int = 0
    first_errors: int = 0
    first_client_errors: int = 0
    first_overdue: int = 0
    new_test: int = 0
    first_errors_test: int = 0
    latency_bins: dict[int, int] = {}
    ttft_bins: dict[int, int] = {}
    itl_bins: dict[int, int] = {}
    cost_bins: dict[int, int] = {}
    first_outcomes: dict[Outcome, int] = {}


class Bucket(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.Bucket`."""

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


class Cell(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.Cell`."""

    test: str
    variant: str
    share_bp: int
    epoch: int = 0
    digest: str = ""
    admitted: int = 0
    done: int = 0
    overdue: int = 0
    overdue_done: int = 0
    fallback: int = 0
    outcomes: dict[Outcome, int] = {}
    latency: Moments = msgspec.field(default_factory=Moments)
    ttft: Moments = msgspec.field(default_factory=Moments)
    itl: Moments = msgspec.field(default_factory=Moments)
    cost: Moments = msgspec.field(default_factory=Moments)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    gpu_us: int = 0
    strata: dict[int, int] = {}
    feedback: dict[str, int] = {}
    units: UnitEvidence = msgspec.field(default_factory=UnitEvidence)
    buckets: dict[int, Bucket] = {}


class Watermark(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.Watermark`."""

    stream_created: str = ""
    last_seq: int = 0
    last_time_ms: int = 0
    batches: dict[str, int] = {}


class NewUnits(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.NewUnits`."""

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
    feedback_ids: dict[int, str] = {}


class Window(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.windows.Window`."""

    partition: int
    writer: str
    watermark: Watermark
    cells: list[Cell] = []
    new_units: list[NewUnits] = []
    rebuild_from: int = 0
