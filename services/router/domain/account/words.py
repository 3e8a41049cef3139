"""The words of an account: names of what is measured, of states and of what happened."""

import re

from schemas.v1.common import Decision, TestStatus
from services.router.domain.account.shapes import Tone
from services.router.domain.report.figures import happening, number

METRICS = {
    "errors": "Error rate", "client_errors": "Callers' errors", "overdue": "Overdue requests", "latency": "Latency",
    "ttft": "Time to first token", "itl": "Time between tokens", "cost": "Cost per request",
    "feedback": "Thumbs down", "timeout": "Timeouts", "rejected": "Rejected requests",
    "error_mid_stream": "Errors in mid-stream", "empty": "Empty replies", "length": "Replies cut off by their length",
    "invalid_json": "Invalid JSON", "invalid_tool_call": "Invalid tool calls", "repetition": "Repetitive replies",
}  # fmt: skip

_OUTCOMES = {
    "ok": "Answered", "error_before_first_token": "Error before the first token", "client_cancel": "Hung up by caller",
    "client_error": "Caller's own error",
}  # fmt: skip

PRIMARY = {
    "latency": "Latency", "ttft": "Time to first token", "cost": "Cost", "error_rate": "Error rate",
    "thumbs": "Thumbs up", "conversion": "Conversion rate", "score": "Satisfaction",
}  # fmt: skip

_CONDITIONS = {
    "min_duration": "Minimum duration", "sample_size": "Enough requests", "sample_ratio": "Split as configured",
    "guardrails": "No guardrail near firing", "errors_not_worse": "Errors not worse",
    "hung_up": "Callers wait for the answer",
    "latency_not_worse": "Latency not worse", "primary_metric": "Primary metric better", "running": "Running",
    "soak": "Time at this step", "approval": "Approval", "backoff": "Time to the retry",
    "rested": "Nothing fired since",
}  # fmt: skip

STATUSES: dict[str, tuple[str, Tone]] = {
    TestStatus.SCHEDULED: ("Scheduled", "plain"),
    TestStatus.RUNNING: ("Running", "good"),
    TestStatus.PAUSED: ("Paused", "wait"),
    TestStatus.ROLLING_BACK: ("Rolling back", "bad"),
    TestStatus.COMPLETED: ("Completed", "plain"),
    TestStatus.ROLLED_BACK: ("Rolled back", "bad"),
    TestStatus.FAILED: ("Failed", "bad"),
}

DECISIONS: dict[str, tuple[str, Tone]] = {
    Decision.PROMOTE_B: ("Promote the canary", "good"),
    Decision.KEEP_A: ("Keep the stable model", "wait"),
    Decision.ROLLBACK: ("Rolled back", "bad"),
    Decision.INCONCLUSIVE: ("Inconclusive", "plain"),
}

ACTIONS = {
    "rollback": "rolls back", "step_down": "steps down", "pause": "pauses the test", "warn": "only warns",
}  # fmt: skip

_LOG_E = re.compile(r" ?\(ln E -?[\d.]+(?:, [a-z ]+ -?[\d.]+)?\)")
_LARGE = re.compile(r"(?<![\w.])\d{5,15}(?![\w.]\d)\b")
_METRIC_OF = {
    "error_rate": "errors", "client_error": "client_errors", "thumbs_down": "feedback", "inter_token": "itl",
}  # fmt: skip
_STEM = re.compile(r"_increase(_\d+)?(_warning)?$")
_RULES = {
    "performance_degradation_errors": "Error rate", "performance_degradation_latency": "Latency",
    "max_error_rate_percent": "Error rate", "critical_error_rate": "Error rate", "warning_error_rate": "Error rate",
    "max_latency_ms": "Latency", "critical_latency_ms": "Latency", "warning_latency_ms": "Latency",
    "sample_ratio_mismatch": "Split not as configured", "no_data": "No data", "monitoring_failure": "Monitoring failed",
    "both_arms_bad": "Both models are bad", "stable_bad": "The stable model is bad",
}  # fmt: skip
_LIMITS = frozenset(name for name in _RULES if name.startswith(("performance_", "max_", "critical_", "warning_")))
_NAME = re.compile(
    "|".join(rf"\b{name}\b" for name in (*_RULES, *_CONDITIONS)) + r"|\b[a-z_]+_increase(?:_\d+)?(?:_warning)?\b"
)
_TONES: dict[str, Tone] = {
    "rolled_back": "bad", "rollback_requested": "bad", "rolling_back": "bad", "failed": "bad", "stepped_down": "wait",
    "paused": "wait", "started": "good", "completed": "plain", "ramped": "good",
}  # fmt: skip
_MANY = 300.0
"""From so many percent more on, multiples read better."""
_LEVELS: dict[str, Tone] = {"WARNING": "wait", "CRITICAL": "bad", "EMERGENCY": "bad"}


def metric(name: str) -> str:
    """What a guardrail watches."""
    return METRICS.get(name, name.replace("_", " ").capitalize())


def outcome(kind: str) -> str:
    """How a request ended."""
    return _OUTCOMES.get(kind) or METRICS.get(kind) or kind.replace("_", " ").capitalize()


def condition(name: str, primary: str) -> str:
    """A condition's name."""
    if name == "primary_metric":
        return f"{PRIMARY.get(primary, primary)} better"
    return _CONDITIONS.get(name, name.replace("_", " ").capitalize())


def plain(text: str) -> str:
    """A sentence of the monitor's as one for people: without ln E, which is drawn, and without names of code."""
    shown = _NAME.sub(_titled, _LOG_E.sub("", text))
    return sentence(_LARGE.sub(lambda found: f"{int(found[0]):,}", shown))


def _titled(found: re.Match[str]) -> str:
    name = found[0]
    return (_CONDITIONS.get(name) or rule(name)).lower() if "_" in name else name


def rule(name: str) -> str:
    """What a rule is about: the name of a guardrail, or of what else ends a test."""
    return _RULES.get(name) or metric(_METRIC_OF.get(stem := _STEM.sub("", name), stem))


def guards(name: str) -> bool:
    """Whether a rule is a guardrail's, by its name."""
    return name in _LIMITS or _STEM.search(name) is not None


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if not text or text[-1] in '.!?' else '.'}"


def percent(value: float | None) -> str:
    """A percentage for people."""
    return "-" if value is None else f"{number(value, 3)} %"


def more(value: float) -> str:
    """A relative change in words."""
    if abs(value) < 0.05:
        return "the same as A"
    if value >= _MANY:
        return f"{number(1 + value / 100, 2)} times as much as A"
    return f"{number(abs(value), 2 if abs(value) < 100 else 3)} % {'more' if value > 0 else 'less'} than A"


def change(kind: str) -> tuple[str, Tone]:
    """What happened to a test, and its tone."""
    return happening(kind).capitalize(), _TONES.get(kind, "plain")


def level(name: str) -> Tone:
    """An alert's tone."""
    return _LEVELS.get(name, "plain")
