"""Facts of finished requests, and feedback on them, on their way into numbered batches.

Pure: no clock, no bus, no disk.
"""

from dataclasses import dataclass, field

import msgspec

from schemas.subjects import PARTITIONS
from schemas.v1.common import Outcome

MAX_BATCH = 256
FLUSH_S = 0.1


class Fact(msgspec.Struct, omit_defaults=True, gc=False):
    """`schemas.v1.facts.Fact`, in the form that is cheap to encode; a test holds both equal."""

    test: str
    variant: str
    share_bp: int
    unit: str
    sticky: bool = True
    kind: str = "final"
    outcome: Outcome = Outcome.OK
    was_overdue: bool = False
    fallback: bool = False
    latency_us: int | None = None
    ttft_us: int | None = None
    itl_us: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int = 0
    gpu_us: int = 0
    digest: str = ""
    stratum: int = 0


class Feedback(msgspec.Struct, omit_defaults=True, gc=False):
    """`schemas.v1.facts.Feedback`."""

    test: str
    variant: str
    share_bp: int
    unit: str
    id: str
    expires_s: int
    sticky: bool = True
    thumbs_up: bool | None = None
    converted: bool | None = None
    score_micro: int | None = None


class Admitted(msgspec.Struct, omit_defaults=True, gc=False):
    """`schemas.v1.facts.Admitted`."""

    test: str
    variant: str
    share_bp: int
    count: int
    alone: int = 0
    units: list[str] = []


class TestClock(msgspec.Struct):
    """`schemas.v1.facts.TestClock`."""

    __test__ = False

    started_ms: int
    epoch_seconds: int


class FactBatch(msgspec.Struct, omit_defaults=True):
    """`schemas.v1.facts.FactBatch`."""

    router_epoch: str
    partition: int
    n: int
    tests: dict[str, TestClock] = {}
    admitted: list[Admitted] = []
    facts: list[Fact] = []
    feedback: list[Feedback] = []
    admits_units: bool = False


encode = msgspec.json.Encoder().encode


def stratum(*, stream: bool, prompt_bytes: int) -> int:
    """``32 * streamed + floor(log2(1 + prompt bytes))``, at most 63."""
    return 32 * stream + min(31, (prompt_bytes + 1).bit_length() - 1)


@dataclass(slots=True)
class _Admissions:
    """Requests admitted to one arm at one share: how many, how many without a unit, and the units of the others."""

    count: int = 0
    alone: int = 0
    units: set[int] = field(default_factory=set)


class Batcher:
    """What has happened since the last batch of each partition, and the numbers of the batches."""

    def __init__(self, router_epoch: str) -> None:
        self.router_epoch = router_epoch
        self._facts: list[list[Fact]] = [[] for _ in range(PARTITIONS)]
        self._feedback: list[list[Feedback]] = [[] for _ in range(PARTITIONS)]
        self._admitted: list[dict[tuple[str, str, int], _Admissions]] = [{} for _ in range(PARTITIONS)]
        self._numbers = [0] * PARTITIONS
        self._clocks: dict[str, TestClock] = {}

    def clock(self, test: str, started_ms: int, epoch_seconds: int) -> None:
        """What batches say about a test's unit epochs."""
        self._clocks[test] = TestClock(started_ms, epoch_seconds)

    def forget(self, test: str) -> None:
        """A test of which nothing will come any more."""
        self._clocks.pop(test, None)

    def tests(self) -> list[str]:
        """Tests whose clocks are kept."""
        return list(self._clocks)

    def admit(self, partition: int, test: str, variant: str, share_bp: int, unit: int | None) -> None:
        """One request was admitted to an arm; ``unit`` is None when it had none of its own."""
        arms = self._admitted[partition]
        key = (test, variant, share_bp)
        arm = arms.get(key)
        if arm is None:
            arm = arms[key] = _Admissions()
        arm.count += 1
        if unit is None:
            arm.alone += 1
        else:
            arm.units.add(unit)

    def add(self, partition: int, fact: Fact) -> int:
        """One request finished or became overdue; how many facts of its partition wait now."""
        facts = self._facts[partition]
        facts.append(fact)
        return len(facts)

    def hear(self, partition: int, feedback: Feedback) -> int:
        """Somebody said something about a request; the number of the batch that it will be in."""
        waiting = self._feedback[partition]
        waiting.append(feedback)
        return self._numbers[partition] + -(-len(waiting) // MAX_BATCH)

    def empty(self, partition: int) -> FactBatch:
        """A batch of nothing, so that what came before it is folded behind the reader's position."""
        self._numbers[partition] += 1
        return FactBatch(self.router_epoch, partition, self._numbers[partition], admits_units=True)

    def waiting(self) -> int:
        """Facts, feedback and admissions in no batch yet."""
        admitted = sum(arm.count for arms in self._admitted for arm in arms.values())
        return sum(map(len, self._facts)) + sum(map(len, self._feedback)) + admitted

    def take(self, partition: int) -> FactBatch | None:
        """The next batch of a partition: at most MAX_BATCH facts and as much feedback; None when nothing happened."""
        facts, said, admitted = self._facts[partition], self._feedback[partition], self._admitted[partition]
        if not facts and not said and not admitted:
            return None
        batch, self._facts[partition] = facts[:MAX_BATCH], facts[MAX_BATCH:]
        heard, self._feedback[partition] = said[:MAX_BATCH], said[MAX_BATCH:]
        counts = [
            Admitted(*key, arm.count, arm.alone, [f"{unit:016x}" for unit in arm.units])
            for key, arm in admitted.items()
        ]
        admitted.clear()
        self._numbers[partition] += 1
        tests = {entry.test for part in (batch, heard, counts) for entry in part}
        clocks = {test: self._clocks[test] for test in sorted(tests) if test in self._clocks}
        number = self._numbers[partition]
        return FactBatch(self.router_epoch, partition, number, clocks, counts, batch, heard, admits_units=True)
