"""Folding facts: what counts, once, and in whatever order."""

import random
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import sketch
from schemas.v1.common import ERRORS, Outcome
from schemas.v1.facts import Admitted, FactBatch
from schemas.v1.windows import OUTCOME_KINDS
from schemas.v1.windows import Window as WindowModel
from services.metrics.adapters import wire
from services.metrics.domain.cells import REPLIED, logs
from services.metrics.domain.fold import MAX_EPOCHS, Fold
from services.metrics.domain.records import Watermark, Window
from services.metrics.domain.units import GRACE_MS, KIND_BITS, OF_EPOCH, OF_TEST, SWEEP_AFTER, UnitBook, unpack
from tests.unit.metrics.facts import START_MS, TEST, batch, fact, facts


def new_fold(watermark: Watermark | None = None, units: UnitBook | None = None) -> Fold:
    return Fold(0, "m1", watermark or Watermark("created", 0), units or UnitBook())


def add(fold: Fold, message: FactBatch, sequence: int, time_ms: int = START_MS) -> bool:
    decoded, reasons = wire.decode_batch(message.model_dump_json().encode(), fold.partition)
    assert not reasons
    return fold.fold(decoded, sequence, time_ms)


def closed(fold: Fold) -> WindowModel:
    return WindowModel.model_validate_json(wire.encode_window(fold.close()))


def summed(windows: list[WindowModel]) -> Counter[tuple[Any, ...]]:
    """Every additive number of every cell, by its full name."""
    total: Counter[tuple[Any, ...]] = Counter()

    def walk(name: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk((*name, key), inner)
        else:
            total[name] += value

    for window in windows:
        for cell in window.cells:
            data = cell.model_dump()
            key = tuple(data.pop(k) for k in ("test", "variant", "share_bp", "epoch", "digest"))
            walk(key, data)
    return +total


def without_units(totals: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    return Counter({k: v for k, v in totals.items() if "units" not in k})


def unit_totals(totals: Counter[tuple[Any, ...]]) -> Counter[tuple[Any, ...]]:
    """Unit counts by test and epoch: which arm or share a unit is first met in depends on the order."""
    counted: Counter[tuple[Any, ...]] = Counter()
    for key, value in totals.items():
        if "units" in key and isinstance(key[-1], str):
            counted[key[0], key[3], key[-1]] += value
    return counted


@settings(max_examples=60, deadline=None)
@given(st.lists(facts, max_size=40), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_the_order_of_facts(items: list[Any], rng: random.Random) -> None:
    shuffled = rng.sample(items, len(items))
    results = []
    for order in (items, shuffled):
        fold = new_fold()
        add(fold, batch(1, order), 1)
        results.append(summed([closed(fold)]))
    assert without_units(results[0]) == without_units(results[1])
    assert unit_totals(results[0]) == unit_totals(results[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(facts, st.booleans(), st.booleans()), max_size=40))
def test_windows_add_up_wherever_they_are_cut_and_however_often_the_writer_restarts(items: list[Any]) -> None:
    whole = new_fold()
    parts = new_fold()
    stored: list[Window] = []
    for n, (item, cut, restart) in enumerate(items, 1):
        add(whole, batch(n, [item]), n, START_MS + n * 60_000)
        add(parts, batch(n, [item]), n, START_MS + n * 60_000)
        if cut:
            stored.append(wire.decode_window(wire.encode_window(parts.close())))
            parts.stored(stored[-1].new_units, len(stored))
            if restart:
                last = stored[-1]
                units = UnitBook()
                for sequence in range(last.rebuild_from or len(stored), len(stored) + 1):
                    units.replay(stored[sequence - 1].new_units, sequence, START_MS)
                parts = new_fold(last.watermark, units)
    stored.append(parts.close())
    windows = [WindowModel.model_validate_json(wire.encode_window(w)) for w in stored]
    assert summed(windows) == summed([closed(whole)])


@given(st.lists(facts, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_counts_equal_a_plain_count(items: list[Any]) -> None:
    fold = new_fold()
    add(fold, batch(1, items), 1)
    window = closed(fold)
    finals = [f for f in items if f.kind == "final"]
    cells = window.cells
    outcomes: Counter[Outcome] = Counter()
    for cell in cells:
        outcomes.update(cell.outcomes)
        assert sum(b.n for b in cell.buckets.values()) == cell.done
        assert sum(b.errors for b in cell.buckets.values()) == sum(n for o, n in cell.outcomes.items() if o in ERRORS)
        assert sum(b.latency_ln for b in cell.buckets.values()) == cell.latency.ln
        assert sum(b.latency_n for b in cell.buckets.values()) == cell.latency.n
        assert sum(b.ttft_ln for b in cell.buckets.values()) == cell.ttft.ln
        assert sum(b.ttft_n for b in cell.buckets.values()) == cell.ttft.n
        assert sum(cell.latency.bins.values()) == cell.latency.n
    assert outcomes == Counter(f.outcome for f in finals)
    assert sum(c.done for c in cells) == sum(f.outcome is not Outcome.CLIENT_ERROR for f in finals)
    assert sum(c.overdue for c in cells) == len(items) - len(finals)
    assert sum(c.overdue_done for c in cells) == sum(f.was_overdue for f in finals)
    assert sum(c.fallback for c in cells) == sum(f.fallback for f in finals)
    timed = [f.latency_us for f in finals if f.outcome in REPLIED and f.latency_us is not None]
    assert sum(c.latency.total for c in cells) == sum(timed)
    assert sum(c.latency.squares for c in cells) == sum(x * x for x in timed)
    assert sum(c.cost.total for c in cells) == sum(f.cost_nano for f in finals)
    for test in {f.test for f in items}:
        sticky = [f for f in finals if f.test == test and f.sticky]
        alone = [f for f in finals if f.test == test and not f.sticky]
        mine = [c for c in cells if c.test == test]
        assert sum(c.units.new for c in mine) == len({f.unit for f in sticky}) + len(alone)
        bad = len({f.unit for f in sticky if f.outcome in ERRORS}) + sum(f.outcome in ERRORS for f in alone)
        assert sum(c.units.first_errors for c in mine) == bad
        assert sum(c.units.first_errors_test for c in mine) == bad
        for kind in Outcome:
            had = len({f.unit for f in sticky if f.outcome is kind}) + sum(f.outcome is kind for f in alone)
            assert sum(c.units.first_outcomes.get(kind, 0) for c in mine) == (had if kind in OUTCOME_KINDS else 0)


def test_a_batch_that_comes_again_counts_once() -> None:
    fold = new_fold()
    assert add(fold, batch(1, [fact(1)]), 1)
    assert add(fold, batch(2, [fact(2)]), 2)
    assert not add(fold, batch(2, [fact(2)]), 3)
    assert not add(fold, batch(1, [fact(1)]), 4)
    assert add(fold, batch(1, [fact(3)], epoch="r2-1"), 5)
    window = closed(fold)
    assert sum(c.done for c in window.cells) == 3
    assert window.watermark.last_seq == 5
    assert window.watermark.batches == {"r1-1": 2, "r2-1": 1}
    assert fold.duplicates == 2
    assert fold.missing_batches == 0


def test_missing_batch_numbers_are_noticed() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(1)]), 1)
    add(fold, batch(4, [fact(1)]), 2)
    assert fold.missing_batches == 2


def test_known_router_processes_are_bounded_and_the_silent_ones_go_first() -> None:
    fold = new_fold()
    for i in range(MAX_EPOCHS):
        add(fold, batch(1, [], epoch=f"r{i}"), i + 1)
    add(fold, batch(2, [], epoch="r0"), MAX_EPOCHS + 1)
    add(fold, batch(1, [], epoch="newest"), MAX_EPOCHS + 2)
    assert len(fold.batches) == MAX_EPOCHS
    assert "r0" in fold.batches
    assert "r1" not in fold.batches


def test_units_count_afresh_in_each_epoch_but_once_in_the_test() -> None:
    fold = new_fold()
    for n, (seconds, outcome) in enumerate([(0, "timeout"), (10, "timeout"), (600, "ok"), (601, "timeout"), (-5, "ok")], 1):
        add(fold, batch(n, [fact(7, outcome=outcome)]), n, START_MS + seconds * 1000)
    cells = {c.epoch: c.units for c in closed(fold).cells}
    assert (cells[0].new, cells[0].first_errors, cells[0].new_test, cells[0].first_errors_test) == (1, 1, 1, 1)
    assert (cells[1].new, cells[1].first_errors, cells[1].new_test, cells[1].first_errors_test) == (1, 1, 0, 0)


def test_a_unit_has_its_first_outcome_of_each_kind_once_in_each_epoch() -> None:
    fold = new_fold()
    came = [(0, "length"), (1, "length"), (2, "empty"), (3, "ok"), (600, "length"), (601, "length")]
    for n, (seconds, outcome) in enumerate(came, 1):
        add(fold, batch(n, [fact(8, outcome=outcome), fact(16, outcome="length")]), n, START_MS + seconds * 1000)
    window = closed(fold)
    cells = {c.epoch: c.units.first_outcomes for c in window.cells}
    assert cells == {0: {Outcome.LENGTH: 2, Outcome.EMPTY: 1}, 1: {Outcome.LENGTH: 2}}
    kinds = [sorted(h & KIND_BITS for h in unpack(new.outcomes)) for new in window.new_units]
    length, empty = OUTCOME_KINDS.index(Outcome.LENGTH), OUTCOME_KINDS.index(Outcome.EMPTY)
    assert kinds == [sorted([length, length, empty]), [length, length]]


def test_every_outcome_of_requests_without_a_unit_counts() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(8, sticky=False, outcome="repetition")] * 3), 1)
    window = closed(fold)
    assert window.cells[0].units.first_outcomes == {Outcome.REPETITION: 3}
    assert window.new_units == []


def test_kinds_of_outcome_fit_beside_a_hash_and_never_move() -> None:
    """The kind's index is stored in three bits of a hash: another order would make known units of one kind another's."""
    assert len(OUTCOME_KINDS) <= KIND_BITS + 1
    assert [kind.value for kind in OUTCOME_KINDS] == [
        "timeout", "rejected", "error_mid_stream", "empty", "length", "invalid_json", "invalid_tool_call", "repetition",
    ]  # fmt: skip


def test_time_before_the_start_is_epoch_zero() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(7)]), 1, START_MS - 10_000_000)
    assert [c.epoch for c in closed(fold).cells] == [0]


def test_first_request_of_a_unit_makes_the_histogram() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(1, latency_us=1000), fact(1, latency_us=9_000_000), fact(2, latency_us=2000, outcome="timeout")]), 1)
    (cell,) = closed(fold).cells
    assert cell.units.latency_bins == {sketch.bin_index(1000): 1}
    assert cell.latency.n == 2


def test_a_request_without_a_unit_never_enters_the_sets() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(1, sticky=False, outcome="rejected"), fact(1, sticky=False), fact(1, sticky=False, kind="overdue")]), 1)
    window = closed(fold)
    assert window.new_units == []
    (cell,) = window.cells
    assert (cell.units.new, cell.units.first_errors, cell.units.first_overdue) == (2, 1, 1)


def test_admissions_are_counted_at_their_share() -> None:
    fold = new_fold()
    admitted = [Admitted(test=TEST, variant="b", share_bp=500, count=3), Admitted(test=TEST, variant="b", share_bp=0, count=2)]
    add(fold, batch(1, [], admitted=admitted), 1)
    assert {(c.share_bp, c.admitted, c.digest) for c in closed(fold).cells} == {(500, 3, ""), (0, 2, "")}


def test_units_are_counted_when_they_are_admitted_so_that_a_hung_arm_misses_none() -> None:
    fold = new_fold()
    units = [f"{unit:016x}" for unit in (8, 16)]
    admitted = [Admitted(test=TEST, variant="b", share_bp=2000, count=4, alone=1, units=units)]
    sent = batch(1, [fact(24, sticky=False)], admitted=admitted)
    sent.admits_units = True
    add(fold, sent, 1)
    assert sum(cell.units.new_test for cell in closed(fold).cells) == 3  # the fact of its own counted on admission
    fold.stored(fold.close().new_units, 5)
    again = batch(2, [fact(8), fact(16)], admitted=admitted)
    again.admits_units = True
    add(fold, again, 2)
    assert sum(cell.units.new_test for cell in closed(fold).cells) == 1
    add(fold, batch(1, [fact(32), fact(40, sticky=False)], epoch="old-1"), 3)  # a router that does not say
    assert sum(cell.units.new_test for cell in closed(fold).cells) == 2


def test_absurd_amounts_stay_within_what_is_stored() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(1, latency_us=10**30, cost_nano=10**30, prompt_tokens=10**30)]), 1)
    (cell,) = closed(fold).cells
    assert cell.latency.total == cell.cost.total == cell.prompt_tokens == 10**15


def test_an_ended_test_is_forgotten_after_its_grace_and_rebuilding_starts_later() -> None:
    fold = new_fold()
    add(fold, batch(1, [fact(1)]), 1)
    fold.stored(fold.close().new_units, 10)
    add(fold, batch(2, [fact(1, test="ab_test_2")]), 2, START_MS + GRACE_MS)
    fold.stored(fold.close().new_units, 20)
    assert fold.units.rebuild_from() == 10
    assert fold.units.forget({TEST, "ab_test_2"}, START_MS + 2 * GRACE_MS) == []
    assert fold.units.forget({"ab_test_2"}, START_MS + GRACE_MS + 1) == [TEST]
    assert fold.units.rebuild_from() == 20


def test_known_units_are_carried_again_so_that_rebuilding_begins_late() -> None:
    rng = random.Random(11)
    fold = new_fold()
    stored: list[Window] = []
    known = [fact(rng.getrandbits(64), outcome=rng.choice(["ok", "timeout", "client_error"])) for _ in range(400)]
    for second in range(4 * SWEEP_AFTER):
        now = START_MS + second * 1000
        items = known[: 300 + second % 100] if second % 50 == 0 else []
        add(fold, batch(second + 1, items), second + 1, now)
        stored.append(wire.decode_window(wire.encode_window(fold.close())))
        fold.stored(stored[-1].new_units, len(stored))
        assert sum(len(unpack(getattr(new, name))) for new in stored[-1].new_units for name in (*OF_EPOCH, *OF_TEST)) < 2000
        if second % 97 == 0 and second:
            units = UnitBook()
            for sequence in range(stored[-1].rebuild_from or len(stored), len(stored) + 1):
                units.replay(stored[sequence - 1].new_units, sequence, now)
            mine, theirs = fold.units.tests[TEST], units.tests[TEST]
            assert theirs.now.epoch == mine.now.epoch
            for (name, log), (_, rebuilt) in zip(mine.logs(), theirs.logs(), strict=True):
                assert set(rebuilt.slice(0, len(rebuilt))) == set(log.slice(0, len(log))), name
    assert stored[-1].rebuild_from > 2 * SWEEP_AFTER
    assert sum(c.units.new_test for w in stored for c in w.cells) == 350


def test_size_bounds_the_message() -> None:
    rng = random.Random(3)
    fold = new_fold()
    items = [
        fact(rng.getrandbits(64), variant=rng.choice("ab"), digest=f"sha256:{i % 9:064d}", latency_us=rng.randrange(1, 10**8),
             ttft_us=rng.randrange(1, 10**8), itl_us=rng.randrange(1, 10**8), cost_nano=rng.randrange(1, 10**9),
             outcome=rng.choice(list(Outcome)))
        for i in range(500)
    ]  # fmt: skip
    add(fold, batch(1, items), 1)
    size = fold.size
    assert len(wire.encode_window(fold.close())) < size


def test_log_bins_are_those_of_the_sketch() -> None:
    rng = random.Random(5)
    values = [0, 1, 2, 3, *range(4, 3000), *(rng.randrange(1, 10**12) for _ in range(3000)), 10**15]
    values += [round(sketch.bin_upper(i)) + d for i in range(0, 1500, 7) for d in (-1, 0, 1) if sketch.bin_upper(i) < 1e15]
    assert logs(values)[1].tolist() == [sketch.bin_index(v) for v in values]
