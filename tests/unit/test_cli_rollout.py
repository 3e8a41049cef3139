"""What `cypria start` and `cypria rollback` send for what a shell gives them."""

from typing import Any

import pytest
from typer.testing import CliRunner

from schemas.v1.control import RollbackCommand, StartRequest
from services._cli import api
from services.cli import app


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    calls: list[tuple[str, str, Any]] = []

    def call(method: str, path: str, *, body: Any = None, params: Any = None) -> dict[str, str]:
        calls.append((method, path.removeprefix("/v1/ab-testing/"), body))
        return {"status": "done", "test_id": "t"}

    monkeypatch.setattr(api, "call", call)
    return calls


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exit_code == status, done.output
    return done.output


def test_start_sends_only_what_was_given(sent: list[tuple[str, str, Any]]) -> None:
    run("start", "a", "b")
    assert sent == [("POST", "start", {"model_a": "a", "model_b": "b", "auto_rollback": True})]


def test_every_option_of_start_becomes_its_field(sent: list[tuple[str, str, Any]]) -> None:
    run(
        "start", "a", "b", "--ramp", "1, 5%,25", "--soak", "30", "--gate", "manual", "--min-requests", "9",
        "--preset", "conservative", "--change-type", "model_update", "--guardrail", "ttft=15:pause",
        "--guardrail", "cost:warn", "--guardrail", "error_rate=2.5%", "--guardrail", "overdue", "--primary-metric", "ttft",
        "--max-retries", "3", "--backoff", "2.5", "--min-duration", "60", "--schedule", "2026-01-31T03:00:00Z",
        "--duration", "600", "--no-auto-rollback",
    )  # fmt: skip
    ((_, _, body),) = sent
    request = StartRequest.model_validate(body)
    assert request.ramp is not None
    assert [step.traffic_split_percent for step in request.ramp.steps] == [1, 5, 25]
    assert (request.ramp.soak_minutes, request.ramp.gate, request.ramp.min_requests) == (30, "manual", 9)
    assert [(g.metric, g.margin_percent, g.action) for g in request.guardrails or []] == [
        ("ttft", 15, "pause"), ("cost", None, "warn"), ("error_rate", 2.5, "rollback"), ("overdue", None, "rollback"),
    ]  # fmt: skip
    assert request.retry is not None
    assert (request.retry.max_retries, request.retry.backoff_minutes) == (3, 2.5)
    assert (request.preset, request.change_type, request.primary_metric) == ("conservative", "model_update", "ttft")
    assert (request.min_duration_minutes, request.test_duration_minutes, request.auto_rollback) == (60, 600, False)
    assert request.schedule == "2026-01-31T03:00:00Z"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--ramp", "1,x"), "'x' is no number of percent"),
        (("--soak", "5"), "give --ramp"),
        (("--gate", "manual"), "give --ramp"),
        (("--guardrail", "=5"), "METRIC=MARGIN:ACTION"),
        (("--guardrail", "ttft=5:"), "METRIC=MARGIN:ACTION"),
        (("--guardrail", "ttft=fast"), "'fast' is no number of percent"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    sent: list[tuple[str, str, Any]], arguments: tuple[str, ...], says: str
) -> None:
    output = run("start", "a", "b", *arguments, status=2)
    assert says in output
    assert arguments[0] in output
    assert sent == []


def test_approvals_and_gradual_rollbacks(sent: list[tuple[str, str, Any]]) -> None:
    run("approve")
    run("approve", "--test-id", "t")
    run("rollback", "--speed", "gradual", "--at", "2026-01-31T03:00:00Z")
    assert sent[:2] == [("POST", "approve", {}), ("POST", "approve", {"test_id": "t"})]
    assert RollbackCommand.model_validate(sent[2][2]).speed == "gradual"


def test_help_shows_examples(sent: list[tuple[str, str, Any]]) -> None:
    assert "cypria start stable canary --ramp 1,5,25,50 --soak 30 --gate manual" in run("start", "--help")
    assert "cypria rollback --speed gradual --at" in run("rollback", "--help")
