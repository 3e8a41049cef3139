"""Facts, batches and their numbers; the spool; feedback tokens; what the body reader says."""

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.common import Outcome
from schemas.v1.facts import Fact as Model
from schemas.v1.facts import FactBatch as BatchModel
from services.router.adapters.spool import Spool, SpoolFull
from services.router.domain.facts import MAX_BATCH, Batcher, Fact, encode, stratum
from services.router.domain.feedback import feedback_of
from services.router.domain.feedback_token import BadToken, FeedbackToken, sign, verify
from services.router.domain.outcome import of_status, of_stream_end
from services.router.domain.refusals import BadRequest, Unprocessable
from services.router.domain.request import read, request_id


def fact(unit: int = 1, **fields: object) -> Fact:
    return Fact("t1", "b", 2000, f"{unit:016x}", **fields)  # type: ignore[arg-type]


def test_a_batch_reads_as_the_schema_has_it() -> None:
    batcher = Batcher("r1-1")
    batcher.clock("t1", 5, 600)
    for unit in (7, 7, 9, None):
        batcher.admit(3, "t1", "b", 2000, unit)
    full = fact(
        sticky=False, kind="final", outcome=Outcome.TIMEOUT, was_overdue=True, fallback=True, latency_us=1, ttft_us=2,
        itl_us=3, prompt_tokens=4, completion_tokens=5, cached_tokens=6, cost_nano=7, gpu_us=8, digest="d", stratum=40,
    )  # fmt: skip
    batcher.add(3, full)
    batcher.add(3, fact(2))
    batch = batcher.take(3)
    assert batch
    read_back = BatchModel.model_validate_json(encode(batch))
    assert read_back.facts[0].model_dump() == {**msgspec.structs.asdict(full), "outcome": Outcome.TIMEOUT}
    assert read_back.facts[1] == Model(test="t1", variant="b", share_bp=2000, unit=f"{2:016x}")
    assert (read_back.router_epoch, read_back.partition, read_back.n) == ("r1-1", 3, 1)
    admitted = read_back.admitted[0]
    assert (admitted.count, admitted.alone, sorted(admitted.units)) == (4, 1, [f"{7:016x}", f"{9:016x}"])
    assert read_back.admits_units
    assert read_back.tests["t1"].epoch_seconds == 600


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 300)), max_size=20))
def test_numbers_rise_by_one_and_nothing_is_lost_or_twice(steps: list[tuple[int, int]]) -> None:
    batcher = Batcher("e")
    taken: dict[int, list[int]] = {}
    added = seen = 0
    for partition, count in steps:
        for _ in range(count):
            added += 1
            batcher.add(partition, fact(added))
        batch = batcher.take(partition)
        assert batch
        assert len(batch.facts) <= MAX_BATCH
        taken.setdefault(partition, []).append(batch.n)
        seen += len(batch.facts)
    for partition in range(8):
        while (batch := batcher.take(partition)) is not None:
            taken.setdefault(partition, []).append(batch.n)
            seen += len(batch.facts)
    assert seen == added
    assert batcher.waiting() == 0
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in taken.values())


def test_admissions_alone_make_a_batch() -> None:
    batcher = Batcher("e")
    batcher.admit(0, "t1", "a", 100, None)
    batch = batcher.take(0)
    assert batch
    assert not batch.facts
    assert batcher.take(0) is None


@given(st.booleans(), st.integers(0, 1 << 40))
def test_the_stratum_fits_its_field(stream: bool, size: int) -> None:
    value = stratum(stream=stream, prompt_bytes=size)
    assert value // 32 == stream
    assert 0 <= value <= 63


def test_the_spool_survives_its_process_and_is_taken_over_once(tmp_path: Path) -> None:
    mine = Spool.create(tmp_path, "r1-1")
    mine.write(0, 2, b"two")
    mine.write(0, 10, b"ten")
    mine.write(1, 1, b"one")
    assert list(Spool.abandoned(tmp_path)) == []  # its owner lives
    mine._lock.close()  # as a death would
    (left,) = Spool.abandoned(tmp_path)
    assert (left.router_epoch, left.batches()) == ("r1-1", [(0, 2), (0, 10), (1, 1)])
    assert list(Spool.abandoned(tmp_path)) == []
    assert left.read(0, 10) == b"ten"
    for batch in left.batches():
        left.remove(*batch)
    assert left.bytes == 0
    left.close()
    assert not (tmp_path / "r1-1").exists()


def test_a_full_spool_takes_no_more(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path, "r1-1", max_bytes=10)
    spool.write(0, 1, b"12345678")
    with pytest.raises(SpoolFull):
        spool.write(0, 2, b"123")
    spool.remove(0, 1)
    spool.write(0, 2, b"123")


TOKEN = FeedbackToken("ab_test_1", "b", 2**64 - 1, "0a", 1000)


def test_a_feedback_token_says_what_it_was_made_for() -> None:
    assert verify(b"key", sign(b"key", TOKEN), 999.0) == TOKEN


@pytest.mark.parametrize("change", [lambda t: t[:-2], lambda t: "x" + t, lambda t: t.replace(".", ""), lambda _: "é.a",
                                    lambda t: t.split(".")[0] + "." + "A" * 22, lambda t: t + "=" * 600])  # fmt: skip
def test_a_forged_feedback_token_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadToken):
        verify(b"key", change(sign(b"key", TOKEN)), 0.0)


def test_an_expired_or_foreign_feedback_token_is_refused() -> None:
    with pytest.raises(BadToken, match="expired"):
        verify(b"key", sign(b"key", TOKEN), 1001.0)
    with pytest.raises(BadToken, match="signature"):
        verify(b"other", sign(b"key", TOKEN), 0.0)


@given(st.text(max_size=200))
def test_no_text_is_taken_for_a_token(text: str) -> None:
    with pytest.raises(BadToken):
        verify(b"key", text, 0.0)


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [(200, "ok", Outcome.OK), (200, "length", Outcome.LENGTH), (200, "new_word", Outcome.OK), (400, "ok", Outcome.CLIENT_ERROR),
     (413, "ok", Outcome.CLIENT_ERROR), (422, "ok", Outcome.CLIENT_ERROR), (401, "client_error", Outcome.ERROR_BEFORE_FIRST_TOKEN),
     (429, "ok", Outcome.REJECTED), (503, "ok", Outcome.REJECTED), (504, "ok", Outcome.TIMEOUT), (500, "ok", Outcome.ERROR_BEFORE_FIRST_TOKEN)],
)  # fmt: skip
def test_the_status_decides_who_is_charged(status: int, said: str, outcome: Outcome) -> None:
    assert of_status(status, said) is outcome


def test_a_started_stream_cannot_be_rejected() -> None:
    assert of_stream_end("rejected", content=True) is Outcome.ERROR_MID_STREAM
    assert of_stream_end("timeout", content=True) is Outcome.TIMEOUT


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        read(body)


@given(st.binary(max_size=200))
def test_a_request_id_is_kept_only_where_it_can_go_into_a_header(given_id: bytes) -> None:
    kept = request_id(given_id)
    if kept is not None:
        assert kept.encode() == given_id
        assert kept.isprintable()
        assert 0 < len(kept) <= 128


def test_a_token_keeps_the_share_and_whether_the_unit_is_more_than_the_request() -> None:
    token = FeedbackToken("ab_test_1", "a", 8, "req_1", 1000, 2500, sticky=False)
    assert verify(b"key", sign(b"key", token), 0.0) == token


def test_feedback_says_which_batch_it_will_be_in() -> None:
    batcher = Batcher("r1-1")
    said = feedback_of(TOKEN, score=4.5, thumbs="down", converted=None)
    expected = [batcher.hear(3, said) for _ in range(2 * MAX_BATCH + 1)]
    batches = []
    while (batch := batcher.take(3)) is not None:
        batches.append(batch)
    assert expected == [batch.n for batch in batches for _ in batch.feedback]
    assert [len(batch.feedback) for batch in batches] == [MAX_BATCH, MAX_BATCH, 1]
    known = BatchModel.model_validate_json(encode(batches[0])).feedback[0]
    assert (known.thumbs_up, known.converted, known.score_micro) == (False, None, 4_500_000)
    assert (known.test, known.variant, known.unit, known.expires_s) == ("ab_test_1", "b", "f" * 16, 1000)
    assert TOKEN.request not in batches[0].feedback[0].id


def test_feedback_that_says_nothing_is_refused_with_the_fields_it_may_have() -> None:
    with pytest.raises(Unprocessable, match=r"score .* thumbs .* converted"):
        feedback_of(TOKEN, score=None, thumbs=None, converted=None)
