"""What is held on one unit of one test, and what stays of a unit that was erased. No value of a unit, only its hash."""

from typing import Literal

from pydantic import Field

from schemas.v1.common import Message, Outcome, ShareBp, UnixMs, VariantName
from schemas.v1.facts import UnitHash


class Tombstone(Message):
    """An entry of the bucket `erasures`, named ``<test>.<unit hash>``: the unit is nobody in this test from then on."""

    test_id: str
    unit: UnitHash
    at_ms: UnixMs


class UnitQuery(Message):
    """`cypria.query.unit`: a page of what a stream holds of a unit of a test, oldest first.

    ``after`` is the sequence that the last page ended with; 0 begins at the time ``since_ms``. ``erase`` has batches of
    METRICS that were folded deleted, where the unit has a tombstone.
    """

    test_id: str = Field(min_length=1)
    unit: UnitHash
    stream: Literal["WINDOWS", "METRICS"] = "WINDOWS"
    after: int = Field(default=0, ge=0)
    since_ms: UnixMs = 0
    limit: int = Field(default=20_000, ge=1, le=100_000)
    erase: bool = False


class UnitFact(Message):
    """One fact of METRICS on the unit: ``kind`` is ``admitted``, ``final``, ``overdue`` or ``feedback``.

    ``at_ms`` is the broker's time of the batch that it came in. What a kind does not have is null.
    """

    at_ms: UnixMs
    kind: str
    variant: VariantName
    share_bp: ShareBp
    outcome: Outcome | None = None
    latency_us: int | None = None
    ttft_us: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_nano: int | None = None
    thumbs_up: bool | None = None
    converted: bool | None = None
    score: float | None = None


class UnitReply(Message):
    """A page. ``last`` is what the next page's ``after`` must be; ``complete`` when the stream's end was reached.

    Of WINDOWS: ``held`` names the sets that carry the hash (`schemas.v1.windows.NewUnits`), ``windows`` counts the
    messages with it, ``first_ms`` and ``last_ms`` are their broker times. Of METRICS: the ``facts``, how many
    ``batches`` they came in, how many of those were ``erased``, and how many are ``left`` because they are not folded.
    """

    last: int = 0
    complete: bool = True
    held: list[str] = Field(default_factory=list)
    windows: int = 0
    first_ms: UnixMs | None = None
    last_ms: UnixMs | None = None
    facts: list[UnitFact] = Field(default_factory=list)
    batches: int = 0
    erased: int = 0
    left: int = 0
