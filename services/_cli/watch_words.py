"""What `cypria watch` says of a test and of what happens to it, in words; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cypria.types import ENDED
from services._cli.show import number

GOOD, CAREFUL, BAD, CALM = "green", "yellow", "red", "cyan"
_EVENTS = {
    "test.started": "started", "test.scheduled": "scheduled", "test.split_changed": "split set",
    "test.paused": "paused", "test.resumed": "resumed", "test.approved": "step approved",
    "test.ramped": "ramp: next step", "test.stepped_down": "stepped down", "test.retried": "tried again",
    "test.rolling_back": "rolling back", "test.rollback_scheduled": "rollback scheduled",
    "test.rolled_back": "rolled back", "test.completed": "completed", "test.failed": "failed",
}  # fmt: skip
_WITH_SPLIT = frozenset({"test.started", "test.split_changed", "test.ramped", "test.stepped_down", "test.retried"})
_ALERT_STYLE = {"EMERGENCY": BAD, "CRITICAL": BAD, "WARNING": CAREFUL}


@dataclass(frozen=True)
class Happening:
    """Something to tell once: when (Unix ms), of which test, its colour and its words; ``id`` tells it from others."""

    id: str
    at_ms: int
    test_id: str
    style: str
    text: str


def evidence(guardrail: dict[str, Any]) -> float:
    """How much of its limit a guardrail's evidence has reached, 0 to 1."""
    limit = guardrail.get("limit") or 0.0
    return min(1.0, max(0.0, (guardrail.get("log_e") or 0.0) / limit)) if limit > 0 else 0.0


def guardrails(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a status, the one that is nearest to its limit first; what only warns comes last, unless it does."""
    found = list((status.get("verdict") or {}).get("guardrails") or [])

    def order(one: dict[str, Any]) -> tuple[bool, bool, bool, float]:
        quiet = one.get("action") == "warn" and not one.get("warned")
        return not one.get("fired"), quiet, not one.get("near"), -round(evidence(one), 3)

    return sorted(found, key=order)


def headline(status: dict[str, Any]) -> tuple[str, str]:
    """(colour, sentence): what is running and whether it is safe."""
    if status.get("test_id") is None:
        return CALM, "No test is running."
    models = status.get("models") or {}
    a, b = models.get("variant_a", "A"), models.get("variant_b", "B")
    state = status.get("status")
    if state in ENDED:
        return _ending(status, a, b)
    if state == "scheduled":
        return CALM, f"{b} is to be tried against {a} from {status.get('starts_at') or 'later'} on."
    if state == "paused":
        share = f"{float(status.get('traffic_split_percent') or 0.0):g} %"
        return CAREFUL, f"Paused: {b} stays at {share} of {a}'s traffic; nothing goes up until `cypria resume`."
    if state == "rolling_back":
        return BAD, f"{b} is being taken out step by step; {a} answers what it gives up."
    return _running(status, a, b)


def _running(status: dict[str, Any], a: str, b: str) -> tuple[str, str]:
    style, sentence = _danger(status, a, b) or _progress(status, b)
    off = "" if status.get("auto_rollback", True) else " Verdicts only alert: automatic rollback is off."
    return style, f"{sentence}{off}"


def _danger(status: dict[str, Any], a: str, b: str) -> tuple[str, str] | None:
    """What speaks against B, the gravest first."""
    found = guardrails(status)
    if fired := next((one for one in found if one.get("fired")), None):
        return BAD, f"Not safe: {b} has passed the limit of {fired['name']}; {_action(fired, status)}."
    if status.get("traffic_split_percent") and status.get("effective_split_percent") == 0:
        return CAREFUL, f"{b} is held back: {a} answers everything at present (breaker or lease)."
    if not status.get("verdict"):
        return CAREFUL, f"Cannot tell: there is no verdict on {b} yet."
    if warned := next((one for one in found if one.get("warned") and not _both(one)), None):
        how = "shown to be worse in" if warned.get("relative", True) else "above the warning level of"
        return CAREFUL, f"Careful: {b} is {how} {warned['name'].removesuffix('_warning')}."
    if near := next((one for one in found if one.get("near") and one.get("action") != "warn"), None):
        standing = f"ln E {near.get('log_e') or 0.0:.1f} of {near.get('limit') or 0.0:.1f}"
        then = _action(near, status)
        return CAREFUL, f"Careful: {b} is close to the limit of {near['name']} ({standing}), at which {then}."
    return None


def _both(guardrail: dict[str, Any]) -> bool:
    """Whether an absolute warning says of A what it says of B."""
    if guardrail.get("relative", True) or guardrail.get("threshold") is None:
        return False
    return float(guardrail.get("value_a") or 0.0) >= float(guardrail["threshold"])


def _progress(status: dict[str, Any], b: str) -> tuple[str, str]:
    """How far a promotion is, where nothing speaks against it."""
    if (status["verdict"].get("promotion") or {}).get("met"):
        return GOOD, f"Safe, and ready: {b} may be promoted; `cypria stop` does."
    if not ((status.get("metrics") or {}).get("variant_b") or {}).get("request_count"):
        return CALM, f"Too early to tell: {b} has not finished a request yet."
    return GOOD, f"Safe so far: nothing speaks against {b}; too little evidence to promote it."


def _action(guardrail: dict[str, Any], status: dict[str, Any]) -> str:
    acts = {"rollback": "it is taken out", "pause": "the test pauses", "step_down": "its split goes down"}
    action = str(guardrail.get("action")) if status.get("auto_rollback", True) else ""
    return acts.get(action, "an alert tells of it")


def _ending(status: dict[str, Any], a: str, b: str) -> tuple[str, str]:
    state = status.get("status")
    decision = status.get("decision") or (status.get("verdict") or {}).get("decision")
    if state == "rolled_back":
        return BAD, f"Rolled back: {a} answers everything, {b} is out."
    if state == "failed":
        return BAD, f"Failed: {a} answers everything."
    words = {
        "promote_b": (GOOD, f"Over: promote {b}; next, make it the stable model."),
        "keep_a": (CAREFUL, f"Over: keep {a}; {b} is not better."),
        "rollback": (BAD, f"Over: {b} had to go; {a} answers everything."),
    }
    return words.get(str(decision), (CALM, f"Over without a decision: keep {a}, or test {b} for longer."))


def missing(status: dict[str, Any]) -> list[str]:
    """What a promotion still needs, a sentence each; empty where nothing is missing or nothing is known."""
    verdict = status.get("verdict") or {}
    conditions = (verdict.get("promotion") or {}).get("conditions") or []
    texts = list(dict.fromkeys(str(one.get("text")) for one in conditions if not one.get("met")))
    summary = str(verdict.get("summary") or "")
    return [summary.removeprefix("needs "), *texts] if texts and summary.startswith("needs ") else texts


def figures(status: dict[str, Any]) -> str:
    """Both variants' figures in a line, for where there is no screen."""
    metrics = status.get("metrics") or {}
    arms = []
    for name in ("variant_a", "variant_b"):
        arm = metrics.get(name) or {}
        arms.append(
            f"{name[-1].upper()} {number(arm.get('request_count', 0))} requests, {number(arm.get('error_rate'), 2)} % "
            f"errors, p95 {number(arm.get('latency_p95_ms'))} ms"
        )
    return "; ".join(arms)


def happening(name: str, envelope: dict[str, Any]) -> Happening | None:
    """A server-sent event in words; None for what nobody needs to read."""
    data = envelope.get("data")
    if not isinstance(data, dict):
        return None
    event_id, at_ms = str(envelope.get("id")), int(data.get("at_ms") or (data.get("order") or {}).get("at_ms") or 0)
    test_id = str(data.get("test_id") or "")
    if name == "alert":
        # What is only told for information is the same as an event.
        return None if data.get("level") == "INFO" else alert(event_id, at_ms, test_id, data)
    kind = str(envelope.get("type", "")).removeprefix("cypria.").rpartition(".v")[0]
    if kind == "rollback.requested":
        reason = (data.get("order") or {}).get("reason") or ""
        return Happening(event_id, at_ms, test_id, BAD, _with("rollback requested", reason))
    if kind == "monitoring.changed":
        state = "on" if data.get("active") else "off: verdicts only alert"
        return Happening(event_id, at_ms, "", CAREFUL, f"monitoring {state}, by {data.get('actor')}")
    if kind not in _EVENTS:
        return None
    words = _EVENTS[kind]
    if kind in _WITH_SPLIT:
        words += f" at {data.get('share_bp', 0) / 100:g} %"
    if data.get("actor"):
        words += f" by {data['actor']}"
    style = BAD if kind in {"test.rolled_back", "test.rolling_back", "test.failed", "test.stepped_down"} else CALM
    return Happening(event_id, at_ms, test_id, style, _with(words, data.get("reason") or ""))


def alert(event_id: str, at_ms: int, test_id: str, data: dict[str, Any]) -> Happening:
    """An alert in words."""
    level = str(data.get("level"))
    words = f"{level} {data.get('title')}{' (resolved)' if data.get('resolved') else ''}"
    return Happening(event_id, at_ms, test_id, _ALERT_STYLE.get(level, CALM), _with(words, data.get("message") or ""))


def _with(words: str, reason: str) -> str:
    return f"{words}: {reason}" if reason else words


def tells(status: dict[str, Any]) -> dict[str, Any]:
    """A status without what changes by itself: two that are the same so need no second line."""
    kept = {k: v for k, v in status.items() if k not in {"elapsed_minutes", "remaining_minutes", "ramp"}}
    if verdict := kept.get("verdict"):
        kept["verdict"] = {k: v for k, v in verdict.items() if k not in {"tick", "windows_seq"}}
    if metrics := kept.get("metrics"):
        kept["metrics"] = {
            arm: {k: v for k, v in of.items() if k != "throughput_rps"} for arm, of in metrics.items()
        }
    if ramp := status.get("ramp"):
        kept["ramp"] = {k: v for k, v in ramp.items() if k != "soak_left_minutes"}
    return kept


def first_lines(texts: Sequence[str], count: int) -> list[str]:
    """So many of them; the last one says how many are left out."""
    if len(texts) <= count:
        return list(texts)
    return [*texts[: max(0, count - 1)], f"... and {len(texts) - max(0, count - 1)} more"] if count > 0 else []
