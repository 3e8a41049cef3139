"""Folding feedback: the first value of each kind for a token, a unit once in the test, exact over restarts."""

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.feedback import KEYS, efficiency, shown
from schemas.v1.facts import Feedback, TestClock
from schemas.v1.windows import Bucket
from schemas.v1.windows import Window as WindowModel
from services.metrics.adapters import wire
from services.metrics.domain.fold import BYTES_PER_CELL, BYTES_PER_FACT, Fold
from services.metrics.domain.records import Watermark, Window
from services.metrics.domain.units import DAY_S, SWEEP_AFTER, UnitBook
from tests.unit.metrics.facts import START_MS, TEST, batch
from tests.unit.metrics.test_fold import add, closed, new_fold

EXPIRES_S = START_MS // 1000 + 7 * DAY_S


def said(token: int, unit: int = 1, **values: Any) -> Feedback:
    """``unit`` differs above the bits of the partition, as units of one partition do."""
    fields: dict[str, Any] = {"test": TEST, "variant": "b", "share_bp": 2000, "expires_s": EXPIRES_S, **values}
    return Feedback(id=f"{token << 3:016x}", unit=f"{unit << 57 | unit << 3:016x}", **fields)


def with_feedback(n: int, items: list[Feedback]) -> Any:
    message = batch(n, [])
    message.tests = {TEST: TestClock(started_ms=START_MS, epoch_seconds=600)}
    message.feedback = items
    return message


def sums(windows: list[WindowModel]) -> Counter[str]:
    total: Counter[str] = Counter()
    for window in windows:
        for cell in window.cells:
            total.update(cell.feedback)
            assert set(cell.feedback) <= set(KEYS)
            assert cell.done == cell.admitted == 0
    return total


def buckets(windows: list[WindowModel]) -> Counter[str]:
    total: Counter[str] = Counter()
    for bucket in (b for w in windows for c in w.cells for b in c.buckets.values()):
        total.update({name: getattr(bucket, name) for name in Bucket.model_fields if getattr(bucket, name)})
    return total


opinions = st.builds(
    said,
    st.integers(0, 12),
    st.integers(0, 6),
    thumbs_up=st.none() | st.booleans(),
    converted=st.none() | st.booleans(),
    score_micro=st.none() | st.integers(1_000_000, 5_000_000),
    sticky=st.booleans(),
    variant=st.sampled_from(["a", "b"]),
)


def test_the_first_value_of_each_kind_counts_and_later_ones_do_not() -> None:
    fold = new_fold()
    add(fold, with_feedback(1, [said(1, thumbs_up=True), said(1, thumbs_up=False, converted=True)]), 1)
    add(fold, with_feedback(2, [said(1, converted=False, score_micro=4_500_000), said(1, score_micro=1_000_000)]), 2)
    total = sums([closed(fold)])
    assert total == {
        "thumbs_up": 1, "converted": 1, "score_n": 1, "score_micro": 4_500_000, "score_squares": 20_250_000,
    }  # fmt: skip


def test_a_unit_counts_once_in_the_test_however_often_it_speaks() -> None:
    fold = new_fold()
    day = 3_600_000
    for n in range(20):
        add(fold, with_feedback(n + 1, [said(n, unit=5, thumbs_up=False), said(100 + n, unit=5, converted=True)]), n + 1,
            START_MS + n * day)  # fmt: skip
    window = closed(fold)
    assert sums([window])["thumbs_down"] == 20
    assert sums([window])["units_thumbs_down"] == 1
    assert buckets([window]) == {"thumbs_n": 1, "conversion_n": 1, "conversions": 1}


def test_a_units_first_thumbs_down_counts_also_after_a_thumbs_up() -> None:
    fold = new_fold()
    add(fold, with_feedback(1, [said(1, thumbs_up=True), said(2, thumbs_up=False), said(3, thumbs_up=False)]), 1)
    window = closed(fold)
    assert sums([window]) == {"thumbs_up": 1, "thumbs_down": 2, "units_thumbs_down": 1}
    assert buckets([window]) == {"thumbs_n": 1, "thumbs_up": 1}


def test_a_request_without_a_unit_is_a_unit_of_its_own_and_enters_no_set_of_units() -> None:
    fold = new_fold()
    add(fold, with_feedback(1, [said(n, unit=5, thumbs_up=False, sticky=False) for n in range(3)] * 2), 1)
    window = closed(fold)
    assert sums([window]) == {"thumbs_down": 3, "units_thumbs_down": 3}
    assert buckets([window]) == {"thumbs_n": 3}
    assert [new.feedback_units for new in window.new_units] == [""]


@given(st.lists(opinions, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_how_many_count_does_not_depend_on_order_or_repetition(items: list[Feedback], rng: random.Random) -> None:
    results = []
    for order in (items, rng.sample(items, len(items)) + items):
        fold = new_fold()
        add(fold, with_feedback(1, order), 1)
        total = sums([closed(fold)])
        results.append((
            total["thumbs_up"] + total["thumbs_down"], total["converted"] + total["not_converted"], total["score_n"],
        ))  # fmt: skip
    assert results[0] == results[1]
    for count, field in zip(results[0], ("thumbs_up", "converted", "score_micro"), strict=True):
        assert count == len({item.id for item in items if getattr(item, field) is not None})


@given(st.lists(st.tuples(opinions, st.booleans(), st.booleans()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_sums_are_exact_wherever_windows_are_cut_and_however_often_the_writer_restarts(items: list[Any]) -> None:
    whole, parts = new_fold(), new_fold()
    stored: list[Window] = []
    for n, (item, cut, restart) in enumerate(items, 1):
        add(whole, with_feedback(n, [item]), n, START_MS + n)
        add(parts, with_feedback(n, [item]), n, START_MS + n)
        if cut:
            stored.append(wire.decode_window(wire.encode_window(parts.close())))
            parts.stored(stored[-1].new_units, len(stored))
            if restart:
                parts = restarted(stored)
    stored.append(parts.close())
    windows = [WindowModel.model_validate_json(wire.encode_window(w)) for w in stored]
    together = [closed(whole)]
    assert sums(windows) == sums(together)
    assert buckets(windows) == buckets(together)


def restarted(stored: list[Window]) -> Fold:
    units = UnitBook()
    for sequence in range(stored[-1].rebuild_from or len(stored), len(stored) + 1):
        units.replay(stored[sequence - 1].new_units, sequence, START_MS)
    return new_fold(stored[-1].watermark, units)


def test_ids_are_carried_again_so_that_a_late_restart_still_knows_them() -> None:
    fold = new_fold()
    add(fold, with_feedback(1, [said(n, unit=n, thumbs_up=True) for n in range(60)]), 1)
    stored = []
    for _ in range(SWEEP_AFTER + 10):
        stored.append(wire.decode_window(wire.encode_window(fold.close())))
        fold.stored(stored[-1].new_units, len(stored))
    assert stored[-1].rebuild_from > SWEEP_AFTER / 2
    again = restarted(stored)
    add(again, with_feedback(2, [said(n, unit=n, thumbs_up=False) for n in range(60)]), 2)
    assert sums([closed(again)]) == {}


def test_ids_are_kept_until_a_day_after_their_tokens_expire_and_feedback_later_than_that_is_left_out() -> None:
    fold = new_fold()
    add(fold, with_feedback(1, [said(1, thumbs_up=True)]), 1)
    fold.close()
    add(fold, with_feedback(2, [said(1, thumbs_up=True)]), 2, EXPIRES_S * 1000 + DAY_S * 1000 // 2)
    assert sums([closed(fold)]) == {}
    assert fold.units.tests[TEST].feedback_ids
    add(fold, with_feedback(3, [said(1, thumbs_up=True), said(2, thumbs_up=True)]), 3, (EXPIRES_S + 3 * DAY_S) * 1000)
    assert sums([closed(fold)]) == {}
    assert fold.units.tests[TEST].feedback_ids == {}


def test_a_window_is_never_larger_than_the_fold_says() -> None:
    fold = Fold(0, "m1", Watermark("created", 0), UnitBook())
    empty = len(wire.encode_window(fold.close()))
    items = [
        said(n, unit=n, thumbs_up=False, converted=True, score_micro=5_000_000, share_bp=n % 10_000)
        for n in range(1, 120)
    ]
    add(fold, with_feedback(1, items), 1)
    assert fold.size == 119 * (BYTES_PER_FACT + BYTES_PER_CELL)
    assert len(wire.encode_window(fold.close())) - empty < fold.size + 119 * (BYTES_PER_FACT + BYTES_PER_CELL)


def test_what_is_shown_has_rates_only_of_answers() -> None:
    assert shown({})["thumbs_up_rate"] is None
    found = shown({"thumbs_up": 3, "thumbs_down": 1, "converted": 1, "not_converted": 3, "score_n": 2, "score_micro": 9_000_000})
    assert (found["thumbs_up_rate"], found["satisfaction_score"], found["conversion_rate"]) == (75.0, 4.5, 25.0)
    assert (found["conversion_count"], found["satisfaction_count"]) == (4, 2)
    assert efficiency(done=0, cost_nano=5, completion_tokens=5, gpu_us=0)["tokens_per_gpu_second"] is None
    spent = efficiency(done=4, cost_nano=2_000_000_000, completion_tokens=300, gpu_us=1_500_000)
    assert spent == {"gpu_seconds": 1.5, "cost_per_request": 0.5, "tokens_per_gpu_second": 200.0}
