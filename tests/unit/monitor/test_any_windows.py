"""Whatever comes on WINDOWS: order, repetition, lateness and absurd numbers never make a verdict of their own."""

import json
import math
import random
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.sketch import bin_index
from schemas.v1.common import Outcome
from schemas.v1.windows import OUTCOME_KINDS, Bucket, Cell, Moments, UnitEvidence, Window
from services.monitor.domain import verdict
from services.monitor.domain.bounds import MAX_COUNT, within
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import Tick, Ticker
from services.monitor.domain.promotion import conditions
from services.monitor.domain.series import SeriesBuilder
from tests.unit.monitor.rollout import ramped
from tests.unit.monitor.synthetic import START_S, TEST, Arm, Traffic, experiment, window

GUARDRAILS = [
    {"metric": "error_rate", "margin_percent": 100, "action": "step_down", "weight": 3.0},
    {"metric": "length", "margin_percent": 20, "action": "pause"},
    {"metric": "cost", "margin_percent": 0, "action": "warn"},
    {"metric": "thumbs_down", "margin_percent": 50},
]

metrics = st.sampled_from(["latency", "cost", "error_rate", "thumbs", "conversion", "score"])
huge = st.one_of(st.integers(0, 1000), st.integers(0, 2**70), st.sampled_from([0, 1, 2**31, 2**63 - 1, 2**63, 10**40]))
any_count = st.one_of(huge, st.integers(-(2**65), -1))
bins = st.dictionaries(st.integers(-10, 40_000), any_count, max_size=5)


def moments() -> st.SearchStrategy[Moments]:
    return st.builds(
        Moments, n=any_count, total=any_count, squares=any_count, ln=any_count, ln_squares=any_count, bins=bins
    )


units = st.builds(
    UnitEvidence, new=any_count, first_errors=any_count, first_client_errors=any_count, first_overdue=any_count,
    new_test=any_count, first_errors_test=any_count, latency_bins=bins, ttft_bins=bins, itl_bins=bins, cost_bins=bins,
    first_outcomes=st.dictionaries(st.sampled_from(OUTCOME_KINDS), any_count, max_size=3),
)  # fmt: skip
cells = st.builds(
    Cell, test=st.just(TEST), variant=st.sampled_from("abc"), share_bp=st.sampled_from([0, 1, 500, 5000, 9999, 10_000]),
    epoch=st.integers(0, 30), admitted=any_count, done=any_count, overdue=any_count, overdue_done=any_count,
    fallback=any_count, outcomes=st.dictionaries(st.sampled_from(list(Outcome)), any_count, max_size=4),
    latency=moments(), ttft=moments(), cost=moments(), prompt_tokens=any_count, completion_tokens=any_count,
    gpu_us=any_count, units=units,
    feedback=st.dictionaries(
        st.sampled_from(["thumbs_up", "thumbs_down", "units_thumbs_down", "score_n", "score_micro"]), any_count, max_size=3
    ),
    buckets=st.dictionaries(
        st.integers(0, 300),
        st.builds(
            Bucket, n=any_count, errors=any_count, latency_n=any_count, latency_ln=any_count, thumbs_n=any_count,
            thumbs_up=any_count,
        ),
        max_size=4,
    ),
)  # fmt: skip


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value] if isinstance(value, float) else []


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(cells, max_size=3), min_size=1, max_size=5), metrics)
def test_no_counts_whatever_make_a_nan_or_stop_the_evaluation(ticks: list[list[Cell]], metric: str) -> None:
    test = ramped(500, 5000, guardrails=GUARDRAILS, primary_metric=metric, policies={"on_monitor_down": "hold"})
    evaluator, series = TestEvaluator(test), SeriesBuilder()
    ticker = Ticker(TEST)
    for second, found in enumerate([*ticks, []]):
        tick = ticker.add(second + 1, 1000 * (START_S + 7 * second), window(found))
        if tick is not None:
            evaluator.tick(tick)
            series.add(evaluator, tick)
    assert all(not math.isnan(check.log_e()) for check in evaluator.checks)
    _all_finite(evaluator, series)
    again = TestEvaluator.from_dict(test, json.loads(json.dumps(evaluator.to_dict())))
    assert json.dumps(again.to_dict()) == json.dumps(evaluator.to_dict())


def _all_finite(evaluator: TestEvaluator, series: SeriesBuilder) -> None:
    """What the API, the page and the terminal are told: no number of it is infinite or none at all."""
    told = [*conditions(evaluator), *evaluator.statuses()]
    assert all(one.needs_requests is None or one.needs_requests >= 0 for one in told)
    for message in (verdict.status(evaluator), verdict.decide(evaluator), series.build(evaluator)):
        assert all(math.isfinite(number) for number in numbers(message.model_dump())), message
        assert "nan" not in message.model_dump_json().lower()
        assert "inf" not in re.findall(r"[-a-z]+", message.model_dump_json().lower())
        type(message).model_validate_json(message.model_dump_json())


few = st.sampled_from([0, 0, 1, 2, 19, 20, 21, 500, MAX_COUNT])


@st.composite
def odd_cells(draw: st.DrawFn) -> Cell:
    """Of an arm that had nothing, one request, one unit, nothing but errors, or figures that are all the same."""
    n, share = draw(few), draw(st.sampled_from([0, 1, 5000, 10_000]))
    bad = draw(st.sampled_from([0, n, min(n, 1), n // 2]))
    units = draw(st.sampled_from([0, 1, min(n, 300), n]))
    value = draw(st.sampled_from([1, 1000, 100_000, MAX_COUNT]))
    good, ln, bucketed = n - bad, round(1e6 * math.log(value)), min(n, draw(st.sampled_from([1, 128])))
    same = Moments(n=good, total=good * value, squares=good * value**2, ln=good * ln, bins={bin_index(value): good} if good else {})
    return Cell(
        test=TEST, variant=draw(st.sampled_from("ab")), share_bp=share, admitted=n, done=n,
        outcomes={Outcome.OK: good, Outcome.TIMEOUT: bad}, latency=same, ttft=same, cost=same,
        units=UnitEvidence(
            new=units, new_test=units, first_errors=min(bad, units), first_errors_test=min(bad, units),
            latency_bins={bin_index(value): min(good, units)}, ttft_bins={}, cost_bins={bin_index(value): min(good, units)},
        ),
        buckets={
            index: Bucket(
                n=n // bucketed, errors=bad // bucketed, latency_n=good // bucketed, latency_ln=good // bucketed * ln,
                cost_n=good // bucketed, cost_ln=good // bucketed * ln, score_n=units // bucketed,
                score_micro=units // bucketed * 1000, thumbs_n=units // bucketed, thumbs_up=units // bucketed,
            )
            for index in range(bucketed)
        },
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(odd_cells(), max_size=4), min_size=1, max_size=4), metrics, st.sampled_from([0.0, 5.0, 99.9]))
def test_nothing_one_unit_all_errors_and_equal_figures_are_told_in_finite_numbers(ticks: list[list[Cell]], metric: str, asked: float) -> None:
    criteria = {"min_improvement_threshold": asked, "negligible_error_rate_percent": 0.1}
    evaluator, series = TestEvaluator(experiment(primary_metric=metric, success_criteria=criteria)), SeriesBuilder()
    for second, found in enumerate(ticks):
        tick = Tick(START_S + second, second + 1, tuple(found))
        evaluator.tick(tick)
        series.add(evaluator, tick)
    assert evaluator.exceptions == []
    _all_finite(evaluator, series)


@settings(max_examples=60, deadline=None)
@given(cells)
def test_possible_numbers_are_left_alone_and_others_are_made_possible(cell: Cell) -> None:
    before = cell.model_copy(deep=True)
    possible = within(cell)
    assert cell == before
    assert within(possible) is possible
    dumped = possible.model_dump(exclude={"buckets", "latency", "ttft", "itl", "cost"})
    assert all(0 <= count <= MAX_COUNT for count in integers(dumped))
    assert possible.buckets == cell.buckets
    (ordinary,) = [c for c in Traffic(1, per_second=9).cells(1) if c.variant == "a"]
    assert within(ordinary) is ordinary


def integers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in integers(inner)]
    return [value] if isinstance(value, int) else []


Messages = list[tuple[int, int, Window]]
FIELDS: dict[str, Any] = {
    "guardrails": GUARDRAILS, "retry": {"max_retries": 1, "backoff_minutes": 0.1}, "policies": {"on_srm": "warn"},
    "failure_criteria": {"max_error_rate_percent": 90}, "thresholds": {"critical_error_rate": 90},
}  # fmt: skip


def made(seed: int, seconds: int, partitions: int = 3) -> list[list[Window]]:
    """The windows of each second, one for each partition."""
    traffics = [
        Traffic(seed + p, per_second=12, share_bp=3000, a=Arm(errors=0.05), b=Arm(errors=0.5)) for p in range(partitions)
    ]
    return [[window(traffic.cells(second), p) for p, traffic in enumerate(traffics)] for second in range(seconds)]


def taken(messages: Messages) -> TestEvaluator:
    """As the monitor takes them in, the open tick included."""
    evaluator, ticker = TestEvaluator(experiment(**FIELDS)), Ticker(TEST)
    for message in messages:
        tick = ticker.add(*message)
        if tick is not None:
            evaluator.tick(tick)
    last = ticker.open_tick()
    if last is not None:
        evaluator.tick(last)
    return evaluator


def state(evaluator: TestEvaluator) -> dict[str, Any]:
    return {name: value for name, value in evaluator.to_dict().items() if name not in {"tick", "findings"}}


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_repetitions_in_any_order_change_nothing(data: st.DataObject) -> None:
    """A window comes when all before it have; with it come any of those again, in any order."""
    messages = [
        (3 * second + p + 1, 1000 * (START_S + second) + 100 * p, w)
        for second, windows in enumerate(made(1, 25)) for p, w in enumerate(windows)
    ]
    mixed: Messages = []
    for position, message in enumerate(messages):
        again = data.draw(st.lists(st.integers(0, position), max_size=4))
        mixed += [message, *(messages[index] for index in again)]
    straight, shuffled = taken(messages), taken(mixed)
    assert shuffled.to_dict() == straight.to_dict()
    assert verdict.decide(shuffled) == verdict.decide(straight)
    assert {f.kind for f in straight.findings} >= {"step_down"}


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_within_a_second_the_order_of_partitions_changes_nothing(data: st.DataObject) -> None:
    seconds = made(2, 25)
    orders: list[Messages] = [[], []]
    for second, windows in enumerate(seconds):
        shuffled = data.draw(st.permutations(windows))
        for found, order in zip(orders, (windows, shuffled), strict=True):
            found += [(len(found) + i + 1, 1000 * (START_S + second) + i, w) for i, w in enumerate(order)]
    straight, other = taken(orders[0]), taken(orders[1])
    assert json.dumps(state(other), sort_keys=True) == json.dumps(state(straight), sort_keys=True)
    assert verdict.decide(other) == verdict.decide(straight)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_comes_late_counts_in_the_tick_that_is_open(seed: int) -> None:
    """A broker's time that goes back (a new leader's clock) makes no tick of its own: WINDOWS order is the order."""
    rng = random.Random(seed)
    messages: Messages = []
    plain: dict[int, list[Window]] = {}
    for second, windows in enumerate(made(3, 25)):
        for w in windows:
            came = second - rng.choice([0, 0, 0, 1, 2, 7])
            plain.setdefault(max([came, *plain]), []).append(w)
            messages.append((len(messages) + 1, 1000 * (START_S + came), w))
    reference = TestEvaluator(experiment(**FIELDS))
    sequence = 0
    for second, group in plain.items():
        sequence += len(group)
        reference.tick(Tick(START_S + second, sequence, tuple(cell for w in group for cell in w.cells)))
    late = taken(messages)
    assert [f.key for f in late.findings] == [f.key for f in reference.findings]
    assert late.to_dict() == reference.to_dict()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 10_000]), st.integers(0, 5), st.integers(0, 9)), max_size=12))
def test_empty_windows_and_a_split_of_nothing_have_factor_exactly_one(rows: list[tuple[int, int, int]]) -> None:
    """Not nearly: what has bet on nothing has neither gained nor lost."""
    evaluator = taken([(p + 1, 1000 * START_S + p, w) for p, w in enumerate(made(4, 1)[0])])
    before = {check.name: growth(check) for check in evaluator.checks if not check.absolute}
    for second, (share, bad, slow) in enumerate(rows, 1):
        odd = Cell(
            test=TEST, variant="b" if share else "a", share_bp=share, done=bad + slow, outcomes={Outcome.TIMEOUT: bad},
            units=UnitEvidence(
                new=bad + slow, first_errors=bad, first_overdue=bad, new_test=bad, first_outcomes={Outcome.LENGTH: slow},
                latency_bins={900: slow} if slow else {}, cost_bins={1000: slow} if slow else {},
            ),
        )  # fmt: skip
        evaluator.tick(Tick(START_S + second, 100 + second, (odd,) if bad or slow else ()))
    assert {check.name: growth(check) for check in evaluator.checks if not check.absolute} == before
    assert evaluator.exceptions == []


def growth(check: Any) -> list[float]:
    process = check._process if check.kind == "rate" else check._evidence
    return [float(value) for value in process.paths()[1]]
