"""What one finished request yields, in batches, from routers to the metrics service.

A batch is published on `cypria.metric.<p>` as the data of a CloudEvent in binary content mode (its
attributes are NATS headers). (router_epoch, partition, n) identifies it for ever: n starts at 1 and
rises by one with each batch of that router process and partition.
"""

from typing import Annotated

from pydantic import Field

from schemas.v1.common import Message, Outcome, ShareBp, UnixMs, VariantName

UnitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
"""A salted hash of a unit."""


class Fact(Message):
    """One finished (or overdue) request; times in microseconds, cost in nano-dollars.

    ``share_bp`` is the share of the canary that the router really applied when it admitted the request;
    ``unit`` is 16 hex digits of the salted hash; ``sticky`` is false where the request had no unit of its
    own (then the unit is random and never enters a seen-set). ``kind`` ``overdue`` is sent once when a
    request grows older than its limit; its ``final`` fact then has ``was_overdue`` true. ``ttft_us`` is null
    when there was no content token. ``stratum`` is 32 * streamed + floor(log2(1 + prompt bytes)).
    """

    test: str
    variant: VariantName
    share_bp: ShareBp
    unit: str = Field(pattern=r"^[0-9a-f]{16}$")
    sticky: bool = True
    kind: str = Field(default="final", pattern="^(final|overdue)$")
    outcome: Outcome = Outcome.OK
    was_overdue: bool = False
    fallback: bool = False
    latency_us: int | None = Field(default=None, ge=0)
    ttft_us: int | None = Field(default=None, ge=0)
    itl_us: int | None = Field(default=None, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cached_tokens: int = Field(default=0, ge=0)
    cost_nano: int = Field(default=0, ge=0)
    gpu_us: int = Field(default=0, ge=0)
    digest: str = ""
    stratum: int = Field(default=0, ge=0, le=63)


class Feedback(Message):
    """What a client said about one assigned request; at least one of the three values is given.

    ``share_bp``, ``unit`` and ``sticky`` are those of the request, as its token has them. ``id`` is 16 hex digits of a
    hash of the token's own id: of each kind of value the first one for an id counts. The id may be forgotten a day
    after ``expires_s`` (Unix seconds). ``score_micro`` is the score * 10**6.
    """

    test: str
    variant: VariantName
    share_bp: ShareBp
    unit: str = Field(pattern=r"^[0-9a-f]{16}$")
    sticky: bool = True
    id: str = Field(pattern=r"^[0-9a-f]{16}$")
    expires_s: int = Field(ge=0)
    thumbs_up: bool | None = None
    converted: bool | None = None
    score_micro: int | None = Field(default=None, ge=0, le=1_000_000_000)


class Admitted(Message):
    """How many requests a router admitted to one arm at one share since its last batch, and whose they were.

    ``alone`` of them had no unit of their own; ``units`` are the unit hashes (16 hex digits) of the others, each once.
    """

    test: str
    variant: VariantName
    share_bp: ShareBp
    count: int = Field(ge=1)
    alone: int = Field(default=0, ge=0)
    units: list[UnitHash] = Field(default_factory=list)


class TestClock(Message):
    """What the aggregator needs to place a fact in a unit epoch, without asking anybody."""

    __test__ = False

    started_ms: UnixMs
    epoch_seconds: int = Field(ge=1)


class FactBatch(Message):
    """Facts of one partition from one router process, in the order they came.

    ``admits_units`` says that units are counted by ``admitted``, and not when their requests finish.
    """

    router_epoch: str = Field(min_length=1, max_length=64)
    partition: int = Field(ge=0)
    n: int = Field(ge=1)
    tests: dict[str, TestClock] = Field(default_factory=dict)
    admitted: list[Admitted] = Field(default_factory=list)
    facts: list[Fact] = Field(default_factory=list)
    feedback: list[Feedback] = Field(default_factory=list)
    admits_units: bool = False
