"""Reading the evidence again gives what was decided when it came, and series that fit on a page."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Decision, Outcome, TestStatus
from schemas.v1.experiment import VerdictRecord
from schemas.v1.record import TestChange
from schemas.v1.windows import Window
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick, Ticker
from services.monitor.domain.reading import GRACE_MS, Pager, Reading, Span, schedule
from services.monitor.domain.series import MAX_POINTS
from services.monitor.domain.verdict import decide, finding_record
from tests.unit.monitor.synthetic import START_S, TEST, Arm, Traffic, experiment, stream, window

Messages = list[tuple[int, int, Window]]


def live(messages: Messages, stop_after: int, **fields: Any) -> tuple[VerdictRecord, Ticker]:
    """The verdict as the monitor gives it: at the tick that fires, else by a stop after so many windows."""
    evaluator, ticker = TestEvaluator(experiment(**fields)), Ticker(TEST)
    for message in messages[:stop_after]:
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
            if evaluator.fired:
                return finding_record(evaluator, evaluator.fired), ticker
    # a restart in between changes nothing
    copy = TestEvaluator.from_dict(evaluator.experiment, evaluator.to_dict())
    still_open = ticker.open_tick()
    if still_open is not None:
        copy.tick(still_open)
    return decide(copy), ticker


def replay(messages: Messages, recorded: VerdictRecord, **fields: Any) -> Reading:
    reading = Reading(experiment(**fields), 0, Span(recorded.details["windows_seq"], None))
    for message in messages:
        reading.take(*message)
    reading.close()
    return reading


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    errors=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    median=st.sampled_from([100.0, 200.0, 600.0]),
    share=st.sampled_from([0, 500, 2000, 5000]),
    users=st.sampled_from([0, 30]),
    seconds=st.integers(1, 60),
    odd=st.integers(0, 5),
)
def test_a_replay_derives_the_very_verdict(
    seed: int, errors: float, median: float, share: int, users: int, seconds: int, odd: int
) -> None:
    traffic = Traffic(seed, share_bp=share, b=Arm(errors=errors, median_ms=median), per_second=20, users=users)
    messages = list(stream(traffic, seconds))
    recorded, _ = live(messages, max(1, 2 * seconds - odd), share_bp=share)
    # over the wire and back, as it is stored
    recorded = VerdictRecord.model_validate_json(recorded.model_dump_json())
    again = replay(messages, recorded, share_bp=share).verdict()
    assert VerdictRecord.model_validate_json(again.model_dump_json()) == recorded


def test_tampered_evidence_gives_another_verdict() -> None:
    messages = list(stream(Traffic(1, b=Arm(errors=0.3)), 60))
    recorded, _ = live(messages, 120)
    assert recorded.decision is Decision.ROLLBACK
    cell = next(c for _, _, w in messages for c in w.cells if c.variant == "b" and c.units.first_errors)
    cell.units.first_errors -= 1
    cell.outcomes[Outcome.ERROR_BEFORE_FIRST_TOKEN] -= 1
    again = replay(messages, recorded).verdict()
    assert (again.rule, again.tick, again.log_e) != (recorded.rule, recorded.tick, recorded.log_e)


def test_a_reading_ends_with_the_test_and_goes_on_while_it_runs() -> None:
    traffic = Traffic(2)
    messages = list(stream(traffic, 40))
    running = Reading(experiment(), 0, Span(None, None))
    for message in messages:
        running.take(*message)
    assert not running.closed
    assert running.evaluator.ticks == 39
    ended = Reading(experiment(), 0, Span(None, (START_S + 10) * 1000))
    for message in messages:
        ended.take(*message)
    assert ended.closed
    assert ended.evaluator.second == START_S + 10 + GRACE_MS // 1000 - 1
    running.follow(Span(None, (START_S + 10) * 1000), [])
    running.take(999, (START_S + 100) * 1000, window([]))
    assert running.closed
    assert sum(running.evaluator.totals.of(v).done for v in "ab") == sum(traffic.requests.values())


def test_without_data_it_says_so_and_has_no_numbers() -> None:
    reading = Reading(experiment(), 0, Span(None, None))
    for message in stream(Traffic(1, per_second=0), 5):
        reading.take(*message)
    assert reading.verdict().rule == "no_data"
    series = reading.series().build(reading.evaluator)
    assert series.n_a == [0] * 4
    assert set(series.latency_ms["b.p99"]) == {None}


@pytest.mark.parametrize("seconds", [3, 700, 2600])
def test_a_series_has_at_most_five_hundred_points_and_loses_no_request(seconds: int) -> None:
    traffic = Traffic(3, per_second=2)
    reading = Reading(experiment(), 0, Span(None, None))
    for message in stream(traffic, seconds):
        reading.take(*message)
    reading.close()
    series = reading.series().build(reading.evaluator)
    assert len(series.seconds) <= MAX_POINTS
    assert series.seconds == sorted(set(series.seconds))
    assert series.seconds[-1] == START_S + seconds - 1
    assert (series.n_a[-1], series.n_b[-1]) == (traffic.requests["a"], traffic.requests["b"])
    columns = [series.share_bp, series.n_a, series.effect, series.effect_low, series.limit]
    columns += [*series.log_e.values(), *series.latency_ms.values()]
    assert {len(column) for column in columns} == {len(series.seconds)}
    assert all(math.isfinite(value) for column in columns for value in column if value is not None)
    if seconds == 2600:
        assert series.step_ticks == 8
        assert series.effect_low[-1] < series.effect[-1] < series.effect_high[-1]


def test_windows_from_before_the_start_are_evidence_but_not_shown() -> None:
    reading = Reading(experiment(), 0, Span(None, None))
    for message in stream(Traffic(1, per_second=0), 20, start=-10):
        reading.take(message[0] + 100, *message[1:])
    assert reading.evaluator.ticks == 19
    assert len(reading.series().build(reading.evaluator).seconds) == 9


@pytest.mark.parametrize(("limit", "room"), [(7, 1 << 30), (1000, 20_000), (1000, 1)])
def test_pages_together_are_the_evidence(limit: int, room: int) -> None:
    messages = list(stream(Traffic(4, per_second=5), 30))
    until = messages[-3][0]
    reading = Reading(experiment(), 0, Span(until, None))
    for message in messages:
        reading.take(*message)
    after, ticks, pages = 0, [], 0
    while True:
        pager = Pager(TEST, after, Span(until, None), limit, room)
        for message in messages:
            pager.take(*message)
        assert pager.full
        ticks += pager.ticks
        pages += 1
        after = pager.last
        if pager.complete:
            break
    assert pages > 1
    assert len(ticks) == reading.evaluator.ticks
    evaluator = TestEvaluator(experiment())
    for tick in ticks:
        evaluator.tick(Tick(tick.second, tick.sequence, tuple(tick.cells)))
    assert evaluator.to_dict() == reading.evaluator.to_dict()


def test_the_configured_share_follows_the_changes() -> None:
    changes = [
        TestChange(id="1", at_ms=START_S * 1000, kind="started", share_bp=1000),
        TestChange(id="2", at_ms=(START_S + 5) * 1000, kind="split_changed", share_bp=0),
        TestChange(id="3", at_ms=(START_S + 9) * 1000, kind="rolled_back", share_bp=0),
        TestChange(id="4", at_ms=1, kind="rollback_requested"),
    ]
    assert schedule(changes) == [
        (START_S * 1000, 1000, TestStatus.RUNNING), ((START_S + 5) * 1000, 0, TestStatus.RUNNING),
    ]
    policies = {"on_no_data": "rollback"}
    fields = {"policies": policies, "check_interval_seconds": 1.0}
    quiet = Reading(experiment(**fields), 0, Span(None, None))
    held = Reading(experiment(**fields), 0, Span(None, None), schedule(changes)[1:])
    for message in stream(Traffic(1, per_second=0), 30):
        quiet.take(*message)
        held.take(*message)
    assert quiet.verdict().rule == "no_data"
    assert quiet.verdict().decision is Decision.ROLLBACK
    # The share was 0 from the fifth second on: five checks of a second had not passed by then.
    assert held.verdict().decision is Decision.INCONCLUSIVE
