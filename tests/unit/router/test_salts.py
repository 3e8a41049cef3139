"""Salts of units: one for each test, joined by nobody, destroyed when nothing needs them and never before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import LIVE, TestStatus, rfc3339
from schemas.v1.experiment import Experiment, TestResult
from services.router.domain.assignment import UnitHasher, unit_hash
from services.router.domain.salts import ORPHANED_MS, TestSalt, decode, encode, over, unit_key

IDS = [f"ab_test_{n}" for n in range(6)]
roots = st.binary(min_size=16, max_size=100)
salts = st.binary(min_size=32, max_size=32)
times = st.integers(1_000_000_000_000, 1_000_100_000_000)


@st.composite
def entries(draw: st.DrawFn) -> Experiment:
    status = draw(st.sampled_from(list(TestStatus)))
    ended = None if status in LIVE else draw(times)
    recent = [
        TestResult(test_id=test, status=TestStatus.COMPLETED, end_time=rfc3339(draw(times)))
        for test in draw(st.lists(st.sampled_from(IDS), max_size=3, unique=True))
    ]
    return Experiment(
        test_id=draw(st.sampled_from(IDS)), status=status, model_a="a", model_b="b", share_bp=0, salt="s",
        created_ms=draw(times), ended_ms=ended, duration_minutes=1, recent=recent,
    )  # fmt: skip


made = st.builds(TestSalt, st.integers(2, 2**53), st.sampled_from(IDS), salts, times)


@given(made)
def test_a_salt_is_read_back_as_it_was_written(salt: TestSalt) -> None:
    assert decode(salt.version, encode(salt)) == salt


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"test_id":"t","salt":"00","created_ms":1}', b'{"salt":7}', b"\xff"])
def test_what_is_no_salt_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(5, raw)


def test_a_salt_is_not_shown_by_accident() -> None:
    assert "secret" not in repr(TestSalt(2, "t", b"secret" * 6, 1))


@given(roots, roots, salts, salts, st.binary(min_size=1, max_size=40))
def test_hashes_of_two_tests_have_nothing_in_common_and_need_both_salts(
    root: bytes, other_root: bytes, salt: bytes, other: bytes, unit: bytes
) -> None:
    own = unit_hash(unit_key(root, salt), unit)
    assert own == unit_hash(unit_key(root, salt), unit)
    if salt != other:
        assert own != unit_hash(unit_key(root, other), unit)
    if root != other_root:
        assert own != unit_hash(unit_key(other_root, salt), unit)
    assert own not in {unit_hash(root, unit), unit_hash(salt, unit)}


@given(st.binary(max_size=100), st.binary(max_size=300))
def test_a_hasher_gives_the_hash_of_every_unit_again_and_again(key: bytes, unit: bytes) -> None:
    hasher = UnitHasher(key)
    assert hasher(unit) == hasher(unit) == unit_hash(key, unit)


@given(st.lists(made, max_size=6), st.lists(entries(), max_size=4), times, st.integers(0, 10_000_000))
def test_a_live_test_keeps_its_salt_and_what_is_over_goes(
    salts: list[TestSalt], all_entries: list[Experiment], now: int, grace: int
) -> None:
    gone = over(salts, all_entries, now, grace)
    live = {entry.test_id for entry in all_entries if entry.live}
    known = live | {e.test_id for e in all_entries} | {r.test_id for e in all_entries for r in e.recent}
    assert all(salt in salts and salt.test_id not in live for salt in gone)
    for salt in salts:
        if salt.test_id not in known:
            assert (salt in gone) == (now >= salt.created_ms + max(grace, ORPHANED_MS))
    ended = [e for e in all_entries if not e.live and e.test_id not in live]
    for entry in ended:
        mine = [salt for salt in salts if salt.test_id == entry.test_id]
        if sum(entry.test_id == e.test_id for e in all_entries) == 1 and entry.ended_ms is not None:
            assert all((salt in gone) == (now >= entry.ended_ms + grace) for salt in mine) or any(
                r.test_id == entry.test_id for e in all_entries for r in e.recent
            )
    # Time only ever adds to what goes.
    assert {s.version for s in gone} <= {s.version for s in over(salts, all_entries, now + 1_000_000, grace)}
