"""From a start request to a complete command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.control import FailureCriteriaPatch, StartRequest, SuccessCriteriaPatch
from schemas.v1.experiment import SuccessCriteria
from services.router.domain.commands import Start
from services.router.domain.refusals import BadRequest, Conflict, NotFound, Refused, Unprocessable
from services.router.domain.shares import share_bp
from services.router.domain.starting import StartDefaults, resolve

DIGESTS = {"stable": "sha256:a", "canary": "", "third": "sha256:t"}


def start(defaults: StartDefaults | None = None, **fields: object) -> Start:
    request = StartRequest.model_validate({"model_a": "stable", "model_b": "canary", **fields})
    return resolve(request, defaults or StartDefaults(), DIGESTS, test_id="t", salt="s", actor="ops")


def test_only_the_two_models_are_required() -> None:
    command = start()
    assert (command.share_bp, command.duration_minutes, command.auto_rollback) == (1000, 1440, True)
    assert command.digests == {"a": "sha256:a", "b": ""}
    assert command.primary_metric == "latency"
    assert command.configured == ()
    assert command.config_hash.startswith("sha256:")


def test_the_requests_criteria_are_laid_over_the_configurations_and_remembered_by_name() -> None:
    defaults = StartDefaults(
        success_criteria=SuccessCriteria(min_improvement_threshold=9.0, min_sample_size=7),
        configured=frozenset({"success_criteria.min_sample_size"}),
    )
    command = start(
        defaults,
        success_criteria=SuccessCriteriaPatch(max_latency_increase_percent=15.0),
        failure_criteria=FailureCriteriaPatch(max_latency_ms=3000.0),
    )
    assert command.success_criteria.min_improvement_threshold == 9.0
    assert command.success_criteria.max_latency_increase_percent == 15.0
    assert command.success_criteria.min_sample_size == 7
    assert command.failure_criteria.max_latency_ms == 3000.0
    assert command.failure_criteria.max_error_rate_percent == 5.0
    assert command.configured == (
        "failure_criteria.max_latency_ms", "success_criteria.max_latency_increase_percent",
        "success_criteria.min_sample_size",
    )  # fmt: skip


def test_a_negligible_error_rate_lies_below_the_one_that_is_a_failure() -> None:
    usual = StartDefaults(success_criteria=SuccessCriteria(negligible_error_rate_percent=0.1))
    assert start(usual).success_criteria.negligible_error_rate_percent == 0.1
    assert start(success_criteria={"negligible_error_rate_percent": 0.5}).success_criteria.negligible_error_rate_percent == 0.5
    assert start(usual, success_criteria={"negligible_error_rate_percent": 0}).success_criteria.negligible_error_rate_percent == 0
    strict = start(usual, failure_criteria={"max_error_rate_percent": 0.1})
    assert strict.success_criteria.negligible_error_rate_percent == 0
    name = "success_criteria.negligible_error_rate_percent"
    for defaults in (usual, StartDefaults(success_criteria=usual.success_criteria, configured=frozenset({name}))):
        asked = {} if name in defaults.configured else {"negligible_error_rate_percent": 0.1}
        with pytest.raises(Unprocessable, match=r"not below failure_criteria.max_error_rate_percent \(0.1\)") as refused:
            start(defaults, success_criteria=asked, failure_criteria={"max_error_rate_percent": 0.1})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("fields", "kind", "param", "says"),
    [
        ({"model_b": "stable"}, BadRequest, "model_b", "both 'stable'"),
        ({"model_b": "nobody"}, NotFound, "model_b", "'nobody' is unknown"),
        ({"model_a": "nobody"}, NotFound, "model_a", "'nobody' is unknown"),
        ({"test_duration_minutes": 1441}, Unprocessable, "test_duration_minutes", "max_test_duration_minutes"),
        ({"traffic_split_percent": 0.005}, Unprocessable, "traffic_split_percent", "steps of 0.01"),
    ],
)
def test_refusals_name_field_and_remedy(fields: dict, kind: type[Refused], param: str, says: str) -> None:
    with pytest.raises(kind, match=says) as refused:
        start(**fields)
    assert refused.value.param == param


def test_switched_off_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="APHRODITE_AB_TESTING_ENABLED"):
        start(StartDefaults(enabled=False))


def test_the_hash_tells_settings_apart_and_nothing_else() -> None:
    assert start().config_hash == start(tags={"team": "x"}).config_hash
    differing = [
        start(), start(traffic_split_percent=11), start(test_duration_minutes=5), start(auto_rollback=False),
        start(primary_metric="ttft"), start(failure_criteria={"max_latency_ms": 1.0}),
        # Naming a limit makes it a guardrail of its own, also at its default.
        start(failure_criteria={"max_latency_ms": 5000.0}), start(model_b="third"),
    ]  # fmt: skip
    assert len({command.config_hash for command in differing}) == len(differing)


@given(st.integers(0, 10_000))
def test_every_hundredth_of_a_percent_is_exact(bp: int) -> None:
    assert share_bp(bp / 100) == bp


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6))
def test_shares_are_exact_or_refused(percent: float) -> None:
    exact = 0 <= percent <= 100 and abs(percent * 100 - round(percent * 100)) <= 1e-6
    if exact:
        assert abs(share_bp(percent) - percent * 100) < 1e-5
        return
    with pytest.raises(Unprocessable) as refused:
        share_bp(percent)
    assert refused.value.param == "traffic_split_percent"
