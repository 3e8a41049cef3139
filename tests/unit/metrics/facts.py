"""Fact batches for tests, as the routers' bytes."""

from typing import Any

from hypothesis import strategies as st

from schemas.v1.common import Outcome
from schemas.v1.facts import Admitted, Fact, FactBatch, TestClock

START_MS = 1_700_000_000_000
TEST = "ab_test_1"


def fact(unit: int = 1, **fields: Any) -> Fact:
    values: dict[str, Any] = {"test": TEST, "variant": "a", "share_bp": 2000, "latency_us": 1000, **fields}
    return Fact(unit=f"{unit:016x}", **values)


def batch(n: int, facts: list[Fact], *, epoch: str = "r1-1", partition: int = 0, admitted: list[Admitted] | None = None) -> FactBatch:
    tests = {f.test for f in facts} | {a.test for a in admitted or []}
    return FactBatch(
        router_epoch=epoch, partition=partition, n=n, facts=facts, admitted=admitted or [],
        tests={test: TestClock(started_ms=START_MS, epoch_seconds=600) for test in tests},
    )  # fmt: skip


amounts = st.one_of(st.none(), st.integers(0, 10**9))
facts = st.builds(
    Fact,
    test=st.sampled_from([TEST, "ab_test_2"]),
    variant=st.sampled_from(["a", "b"]),
    share_bp=st.sampled_from([0, 100, 2000]),
    unit=st.integers(0, 40).map(lambda i: f"{i * 0x0618_3A9B_71C3_5D08 % 2**64:016x}"),
    sticky=st.booleans(),
    kind=st.sampled_from(["final", "final", "final", "overdue"]),
    outcome=st.sampled_from(list(Outcome)),
    was_overdue=st.booleans(),
    fallback=st.booleans(),
    latency_us=amounts,
    ttft_us=amounts,
    itl_us=amounts,
    prompt_tokens=st.integers(0, 10_000),
    completion_tokens=st.integers(0, 10_000),
    cached_tokens=st.integers(0, 10_000),
    cost_nano=st.integers(0, 10**9),
    gpu_us=st.integers(0, 10**9),
    digest=st.sampled_from(["", "sha256:aa"]),
    stratum=st.integers(0, 63),
)
