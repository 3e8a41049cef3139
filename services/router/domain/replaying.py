"""Whether a verdict that was derived anew is the recorded one; pure."""

import math

from schemas.v1.experiment import VerdictRecord

TOLERANCE = 1e-9
"""Of ln E; decision, rule and tick must be the same."""


def differences(recorded: VerdictRecord, replayed: VerdictRecord) -> list[str]:
    """What differs, each with both values; empty when the replay agrees."""
    found = [
        f"{name}: recorded {_text(before)}, replayed {_text(now)}"
        for name in ("decision", "rule", "tick")
        if (before := getattr(recorded, name)) != (now := getattr(replayed, name))
    ]
    if not _close(recorded.log_e, replayed.log_e):
        found.append(f"ln E: recorded {_text(recorded.log_e)}, replayed {_text(replayed.log_e)}")
    return found


def _close(recorded: float | None, replayed: float | None) -> bool:
    known = [value for value in (recorded, replayed) if value is not None and math.isfinite(value)]
    return not known or (len(known) == 2 and abs(known[0] - known[1]) <= TOLERANCE)


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)
