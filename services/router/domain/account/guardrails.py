"""Guardrails in words: how each stands, and what all of them say about whether the canary is safe."""

import math
from collections.abc import Sequence

from schemas.v1.query import GuardrailStatus
from services.router.domain.account.shapes import Answer, GuardrailAccount, State, Tone
from services.router.domain.account.words import ACTIONS, metric, more, plain
from services.router.domain.report.figures import number

_STATES: dict[State, tuple[str, Tone]] = {
    "fired": ("Fired", "bad"),
    "over": ("Beyond its limit", "bad"),
    "near": ("Close to its limit", "wait"),
    "worse": ("Worse than A, within the limit", "wait"),
    "high": ("High, within the limit", "wait"),
    "quiet": ("Stepped down, resting", "wait"),
    "within": ("Shown to be within the limit", "good"),
    "open": ("No evidence of harm", "plain"),
    "no_data": ("No data yet", "plain"),
}
_GRAVEST: tuple[State, ...] = ("fired", "over", "near", "quiet", "worse", "high")
_WHOLE = -99.95
"""A lower end of -100 % excludes nothing: a rate cannot fall further."""


def rows(statuses: Sequence[GuardrailStatus]) -> list[GuardrailAccount]:
    """One row for each guardrail that acts, the gravest first; one that only warns about the same is part of it."""
    warnings = {(s.metric, s.relative): s for s in statuses if s.action == "warn" and _echo(s)}
    found = [
        _row(status, warnings.get((status.metric, status.relative)))
        for status in statuses
        if status.action != "warn" or not _echo(status)
    ]
    return sorted(found, key=lambda row: _GRAVEST.index(row.state) if row.state in _GRAVEST else len(_GRAVEST))


def _echo(status: GuardrailStatus) -> bool:
    """Whether it is the warning that comes with another guardrail, and not one that somebody asked for."""
    return status.name.endswith("_warning") or status.name.startswith("warning_")


def _row(status: GuardrailStatus, warning: GuardrailStatus | None) -> GuardrailAccount:
    state = _state(status, warning)
    text, tone = _STATES[state]
    unit = "%" if status.relative else status.unit
    return GuardrailAccount(
        name=status.name,
        title=metric(status.metric or status.name),
        limit_text=_limit(status, unit),
        action=status.action,
        action_text=ACTIONS.get(status.action, status.action.replace("_", " ")),
        state=state,
        tone=tone,
        state_text=text,
        text=_told(status, warning, state, unit),
        relative=status.relative,
        quantity=status.quantity,
        unit=status.unit,
        value_a=status.value_a,
        value_b=status.value_b,
        effect=status.effect,
        effect_low=None if status.relative and (status.effect_low or 0.0) <= _WHOLE else status.effect_low,
        effect_high=status.effect_high,
        effect_unit=unit,
        threshold=status.threshold,
        log_e=status.log_e,
        limit=status.limit,
        n_a=status.n_a,
        n_b=status.n_b,
    )


def _state(status: GuardrailStatus, warning: GuardrailStatus | None) -> State:
    if status.fired or status.quiet_until_ms is not None:
        return "fired" if status.quiet_until_ms is None else "quiet"
    if status.log_e >= status.limit:  # another one acted before, too few units look bad yet, or both models are bad
        return "over"
    if status.near:
        return "near"
    if status.warned or (warning is not None and warning.warned and not _both(warning)):
        return "worse" if status.relative else "high"
    if not status.n_b:
        return "no_data"
    high, threshold = status.effect_high, status.threshold
    return "within" if high is not None and threshold is not None and high <= threshold else "open"


def _both(warning: GuardrailStatus) -> bool:
    """Whether an absolute warning says of A what it says of B."""
    return not warning.relative and (warning.value_a or 0.0) >= (warning.threshold or math.inf)


def _limit(status: GuardrailStatus, unit: str) -> str:
    if status.threshold is None:
        return ""
    limit = f"{number(status.threshold) if unit != 'ms' else f'{status.threshold:,.0f}'} {unit}".rstrip()
    return f"at most {limit} above A" if status.relative else f"at most {limit}"


def _told(status: GuardrailStatus, warning: GuardrailStatus | None, state: State, unit: str) -> str:
    if state == "no_data":
        return "Nothing of B could be measured yet."
    if state in {"fired", "over", "near"} and status.text:
        return plain(status.text)
    said = plain(extent(status, unit))
    if warning is not None and warning.warned and not warning.relative and warning.threshold is not None:
        level = f"{warning.threshold:,.0f} {unit}" if unit == "ms" else f"{number(warning.threshold)} {unit}"
        said += f" {'A and B are' if _both(warning) else 'B is'} above the warning level of {level}."
    return said


def extent(status: GuardrailStatus, unit: str) -> str:
    """What the effect may be, in words."""
    low, high = status.effect_low, status.effect_high
    if status.relative:
        low = None if low is not None and low <= _WHOLE else low
        if status.quantity == "share" and not status.value_a and not status.value_b:
            return "neither A nor B has had any" if status.n_b else "nothing to compare yet"
        ends = [None if end is None else more(end) for end in (low, high)]
    else:
        ends = [None if not end else f"{number(end, 3)} {unit}" for end in (low, high)]
    if ends[0] and ends[1]:
        return f"B is between {ends[0].removesuffix(' than A').removesuffix(' as much as A')} and {ends[1]}"
    if ends[1]:
        return f"B is at most {ends[1]}"
    if ends[0]:
        return f"B is at least {ends[0]}"
    return "too few requests to say how B compares"


def safety(found: Sequence[GuardrailAccount], *, live: bool) -> Answer:
    """Whether the canary is safe, by all guardrails together."""
    if not found:
        return Answer(tone="plain", text="Nothing is known of the guardrails: the monitor gave no word.")
    for state in _GRAVEST:
        grave = [row for row in found if row.state == state]
        if grave:
            return _grave(state, grave)
    watched = [row for row in found if row.state != "no_data"]
    if not watched:
        return Answer(
            tone="plain",
            text="Nothing can be said yet: no request of the canary has finished."
            if live else "Nothing could be said: no request of the canary finished.",
        )  # fmt: skip
    count = len(found)
    if all(row.state == "within" for row in watched):
        text = f"Yes: all {count} guardrails are shown to be within their limits."
    else:
        shown = sum(row.state == "within" for row in watched)
        text = f"No evidence of harm: none of {count} guardrails has fired or is close to it"
        text += f", and {shown} are shown to be within their limits." if shown > 1 else "."
    return Answer(tone="good", text=text + _headroom(found))


def _grave(state: State, grave: Sequence[GuardrailAccount]) -> Answer:
    names = ", ".join(dict.fromkeys(row.title for row in grave))
    first = max(grave, key=lambda row: row.log_e - row.limit)
    tone: Tone = "bad" if state in {"fired", "over"} else "wait"
    lead = {
        "fired": f"No. {names}: beyond the limit.",
        "over": f"No. {names}: beyond the limit, without consequence so far.",
        "near": f"Careful. {names}: close to firing.",
        "quiet": f"{names}: fired before, the canary was stepped down and is being watched at the smaller split.",
        "worse": f"{names}: shown to be worse than A, within the limit so far.",
        "high": f"{names}: above the warning level, within the limit.",
    }[state]
    return Answer(tone=tone, text=f"{lead} {first.text}")


def _headroom(found: Sequence[GuardrailAccount]) -> str:
    """The one figure that people want of errors: how many there can be at most."""
    row = next((row for row in found if not row.relative and row.unit == "%" and row.effect_high is not None), None)
    if row is None:
        return ""
    return (
        f" Errors of the canary: {number(row.value_b, 3)} % so far, at most {number(row.effect_high, 3)} % "
        f"(limit {number(row.threshold)} %)."
    )
