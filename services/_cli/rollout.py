"""What `cypria start` takes about ramps, guardrails and retries, as the API takes it."""

from typing import Any

import typer

EXAMPLES = """
Examples:

\b
  cypria start stable canary --split 10 --duration 60
  cypria start stable canary --preset conservative --change-type model_update
  cypria start stable canary --ramp 1,5,25,50 --soak 30 --gate manual
  cypria start stable canary --guardrail ttft=15:step_down --guardrail cost:pause
  cypria start stable canary --schedule 2026-01-31T03:00:00Z
  cypria start stable canary --duration 60 --tag commit=0a1b2c3 --wait --timeout 2h
"""


def percent(text: str, option: str) -> float:
    """A number of percent. Raises BadParameter naming the option."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no number of percent", param_hint=option) from None


def ramp(shares: str | None, soak: float | None, gate: str | None, min_requests: int | None) -> dict[str, Any] | None:
    """``1,5,25,50`` and what holds for each step. Raises BadParameter for what makes no ramp."""
    common = {"soak_minutes": soak, "gate": gate, "min_requests": min_requests}
    given = {name: value for name, value in common.items() if value is not None}
    if shares is None:
        if given:
            options = {"soak_minutes": "--soak", "gate": "--gate", "min_requests": "--min-requests"}
            raise typer.BadParameter(
                "there is no ramp: give --ramp, such as --ramp 1,5,25,50", param_hint=options[next(iter(given))]
            )
        return None
    steps = [{"traffic_split_percent": percent(part.strip().removesuffix("%"), "--ramp")} for part in shares.split(",")]
    return {"steps": steps, **given}


def guardrail(text: str) -> dict[str, Any]:
    """``METRIC[=MARGIN][:ACTION]``, such as ``ttft=15:pause``. Raises BadParameter for anything else."""
    head, colon, action = text.partition(":")
    metric, equals, margin = head.partition("=")
    if not metric.strip() or (colon and not action.strip()):
        raise typer.BadParameter(
            f"'{text}' is no guardrail: give METRIC=MARGIN:ACTION, such as ttft=15:pause", param_hint="--guardrail"
        )
    found: dict[str, Any] = {"metric": metric.strip()}
    if equals:
        found["margin_percent"] = percent(margin.strip().removesuffix("%"), "--guardrail")
    if colon:
        found["action"] = action.strip()
    return found


def tags(given: list[str] | None) -> dict[str, str] | None:
    """``NAME=VALUE`` each. Raises BadParameter for anything else."""
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"'{text}' is no tag: give NAME=VALUE", param_hint="--tag")
        found[name] = value
    return found or None


def retry(max_retries: int | None, backoff: float | None) -> dict[str, Any] | None:
    """How often and when to go back up after a step down."""
    given = {"max_retries": max_retries, "backoff_minutes": backoff}
    return {name: value for name, value in given.items() if value is not None} or None
