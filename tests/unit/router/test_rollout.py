"""Guardrails, ramps, presets and kinds of change: what a start request becomes."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.v1.control import StartRequest
from schemas.v1.experiment import FailureCriteria, RetryPolicy, SuccessCriteria
from services.router.domain.commands import Start
from services.router.domain.experiment import apply
from services.router.domain.refusals import Unprocessable
from services.router.domain.starting import StartDefaults, resolve


def start(defaults: StartDefaults | None = None, **fields: Any) -> Start:
    request = StartRequest.model_validate({"model_a": "stable", "model_b": "canary", **fields})
    return resolve(request, defaults or StartDefaults(), {"stable": "", "canary": ""}, test_id="t", salt="s", actor="ops")


def ramp(*percents: float, **fields: Any) -> dict[str, Any]:
    return {"steps": [{"traffic_split_percent": percent} for percent in percents], **fields}


def percents(command: Start) -> list[float]:
    return [step.share_bp / 100 for step in command.ramp]


def test_a_plain_start_has_no_ramp_no_guardrails_of_its_own_and_two_retries() -> None:
    command = start()
    assert (command.ramp, command.guardrails, command.min_duration_minutes) == ((), (), 0)
    assert command.retry == RetryPolicy(max_retries=2, backoff_minutes=10)


def test_a_ramp_fills_in_what_its_steps_leave_out() -> None:
    steps = [
        {"traffic_split_percent": 0.01},
        {"traffic_split_percent": 5, "soak_minutes": 1, "min_requests": 7, "gate": "manual"},
    ]
    command = start(test_duration_minutes=60, ramp={"steps": steps, "gate": "none"})
    assert command.share_bp == 1
    assert [(s.share_bp, s.soak_minutes, s.min_requests, s.gate) for s in command.ramp] == [
        (1, 6, 100, "none"), (500, 1, 7, "manual"),
    ]  # fmt: skip
    command = start(ramp=ramp(1, 5, soak_minutes=3, min_requests=0), success_criteria={"min_sample_size": 9})
    assert [(s.soak_minutes, s.min_requests, s.gate) for s in command.ramp] == [(3, 0, "statistical")] * 2
    assert start(ramp=ramp(1), success_criteria={"min_sample_size": 9}).ramp[0].min_requests == 9


def test_bare_lists_and_numbers_are_ramps_and_steps() -> None:
    assert start(ramp=[1, 5, 25.5]) == start(ramp=ramp(1, 5, 25.5)) == start(ramp={"steps": [1, 5, 25.5]})
    with pytest.raises(ValidationError, match=r"ramp\.steps\.1"):
        start(ramp=[1, True])


def test_the_split_may_be_given_beside_a_ramp_when_it_is_its_first() -> None:
    assert start(ramp=ramp(1, 5), traffic_split_percent=1).share_bp == 100


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"ramp": ramp(1, 5), "traffic_split_percent": 2}, "traffic_split_percent", "leave it out"),
        ({"ramp": ramp(1, 5, 5)}, "ramp.steps.2.traffic_split_percent", "rising order"),
        ({"ramp": ramp(1, 0.5)}, "ramp.steps.1.traffic_split_percent", "not above the 1 before it"),
        ({"ramp": ramp(1, 5.005)}, "ramp.steps.1.traffic_split_percent", "steps of 0.01"),
        ({"ramp": ramp(1, 5, soak_minutes=31), "test_duration_minutes": 60}, "ramp.soak_minutes", "such as 30 for each"),
        ({"ramp": ramp(*range(1, 12))}, "ramp.soak_minutes", "11 steps"),
        (
            {"ramp": {"steps": [{"traffic_split_percent": 1, "soak_minutes": 61}]}, "test_duration_minutes": 60},
            "ramp.steps.0.soak_minutes", "longer test_duration_minutes",
        ),
        ({"guardrails": [{"metric": "cost"}, {"metric": "ttft"}, {"metric": "cost"}]}, "guardrails.2.metric", "once"),
        ({"min_duration_minutes": 11, "test_duration_minutes": 10}, "min_duration_minutes", "above the duration"),
        ({"min_duration_minutes": 61, "change_type": "bug_fix"}, "min_duration_minutes", "above the duration"),
        ({"test_duration_minutes": 1441, "change_type": "bug_fix"}, "test_duration_minutes", "max_test_duration"),
    ],
)  # fmt: skip
def test_refusals_name_the_field_and_the_remedy(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(Unprocessable, match=says) as refused:
        start(**fields)
    assert refused.value.param == param
    assert param in refused.value.message


def test_ten_steps_soak_for_exactly_the_whole_test() -> None:
    for minutes in (60, 0.7, 1440):
        assert len(start(ramp=ramp(*range(1, 11)), test_duration_minutes=minutes).ramp) == 10


def test_a_guardrails_margin_is_that_of_its_family() -> None:
    rates = ("error_rate", "client_error_rate", "overdue", "thumbs_down", "timeout", "length", "repetition")
    slow = ("latency", "ttft", "inter_token", "cost")
    command = start(
        success_criteria={"max_error_rate_increase_percent": 30, "max_latency_increase_percent": 15},
        guardrails=[{"metric": m} for m in (*rates, *slow)],
    )
    assert {g.metric: g.margin_percent for g in command.guardrails} == dict.fromkeys(rates, 30) | dict.fromkeys(slow, 15)
    (own,) = start(guardrails=[{"metric": "ttft", "margin_percent": 0, "action": "pause", "weight": 2}]).guardrails
    assert (own.margin_percent, own.action, own.weight) == (0, "pause", 2)


def test_a_preset_lies_between_the_configuration_and_the_request() -> None:
    defaults = StartDefaults(success_criteria=SuccessCriteria(min_sample_size=7, max_latency_increase_percent=1))
    careful = start(defaults, preset="conservative")
    assert careful.success_criteria == SuccessCriteria(
        min_improvement_threshold=10, max_error_rate_increase_percent=25, max_latency_increase_percent=10,
        min_sample_size=1000,
    )  # fmt: skip
    assert (percents(careful), careful.share_bp) == ([1, 5, 10, 25, 50], 100)
    assert {(s.soak_minutes, s.min_requests, s.gate) for s in careful.ramp} == {(144, 1000, "statistical")}
    quick = start(defaults, preset="aggressive", success_criteria={"min_sample_size": 60})
    assert quick.success_criteria == SuccessCriteria(
        min_improvement_threshold=2, max_error_rate_increase_percent=100, max_latency_increase_percent=50,
        min_sample_size=60,
    )  # fmt: skip
    assert percents(quick) == [10, 50]
    assert (quick.preset, quick.failure_criteria) == ("aggressive", FailureCriteria())
    assert quick.configured == ("success_criteria.min_sample_size",)


def test_a_split_or_a_ramp_of_the_request_takes_the_place_of_the_presets() -> None:
    fixed = start(preset="conservative", traffic_split_percent=20)
    assert (fixed.ramp, fixed.share_bp, fixed.success_criteria.min_sample_size) == ((), 2000, 1000)
    assert percents(start(preset="conservative", ramp=ramp(2, 4))) == [2, 4]


@pytest.mark.parametrize(
    ("change", "split", "duration", "shortest"),
    [
        ("bug_fix", 10, 60, 30), ("performance_optimization", 5, 240, 120), ("model_update", 1, 1440, 240),
        ("architecture_change", 1, 4320, 1440),
    ],
)  # fmt: skip
def test_a_kind_of_change_gives_what_the_guidelines_recommend(
    change: str, split: float, duration: float, shortest: float
) -> None:
    command = start(StartDefaults(max_duration_minutes=5000), change_type=change)
    assert (command.share_bp, command.duration_minutes) == (split * 100, duration)
    assert (command.min_duration_minutes, command.ramp, command.change_type) == (shortest, (), change)
    given = start(change_type=change, traffic_split_percent=33, test_duration_minutes=20, min_duration_minutes=3)
    assert (given.share_bp, given.duration_minutes, given.min_duration_minutes) == (3300, 20, 3)
    assert start(change_type=change, test_duration_minutes=20).min_duration_minutes == 20


def test_the_longest_recommended_duration_that_the_configuration_allows() -> None:
    assert start(StartDefaults(max_duration_minutes=300), change_type="model_update").duration_minutes == 300
    assert start(change_type="architecture_change").duration_minutes == 1440
    with pytest.raises(Unprocessable, match="at least 240 minutes, above max_test_duration_minutes") as refused:
        start(StartDefaults(max_duration_minutes=239), change_type="model_update")
    assert refused.value.param == "change_type"


@pytest.mark.parametrize(
    ("preset", "change", "expected"),
    [
        ("conservative", "bug_fix", [10, 25]),
        ("conservative", "performance_optimization", [5, 10, 15]),
        ("conservative", "model_update", [1, 5, 10]),
        ("conservative", "architecture_change", [1, 5]),
        ("aggressive", "bug_fix", [10, 25]),
        ("aggressive", "model_update", [1, 10]),
        ("aggressive", "architecture_change", [1, 5]),
    ],
)
def test_a_presets_ramp_stays_within_the_range_of_the_change(preset: str, change: str, expected: list[float]) -> None:
    assert percents(start(preset=preset, change_type=change)) == expected


def test_the_hash_tells_every_part_apart_and_names_make_no_difference() -> None:
    differing = [
        start(), start(ramp=ramp(10)), start(ramp=ramp(10, 20)), start(ramp=ramp(10, 20, gate="manual")),
        start(retry={"max_retries": 1}), start(min_duration_minutes=5), start(preset="conservative"),
        start(guardrails=[{"metric": "cost"}]), start(guardrails=[{"metric": "cost", "action": "warn"}]),
    ]  # fmt: skip
    assert len({command.config_hash for command in differing}) == len(differing)
    same = start(change_type="bug_fix", test_duration_minutes=20, min_duration_minutes=0, traffic_split_percent=10)
    assert same.config_hash == start(test_duration_minutes=20).config_hash


def test_all_of_it_is_in_the_stored_entry_and_in_what_is_shown_of_it() -> None:
    command = start(preset="conservative", change_type="model_update", guardrails=[{"metric": "ttft", "action": "pause"}])
    entry, _ = apply(None, command, 5)
    for shown in (entry, entry.configuration):
        assert shown.ramp is not None
        assert [step.share_bp for step in shown.ramp.steps] == [100, 500, 1000]
        assert (shown.share_bp, shown.min_duration_minutes, shown.retry.max_retries) == (100, 240, 2)
        assert (shown.preset, shown.change_type) == ("conservative", "model_update")
        assert [g.action for g in shown.guardrails] == ["pause"]
    assert entry.slots == [(0, 100)]
