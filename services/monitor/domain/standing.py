"""How one guardrail stands, in numbers for people; what it decides is not here."""

import math

from schemas.v1.query import GuardrailStatus
from services.monitor.domain.checks import Check

DISPLAYED = 0.05
"""Level of the confidence sequences that are shown beside a guardrail."""
LOUD = math.log(3.0)
"""ln E from which what is shown is what the evidence is about: a tail, say; below it is the usual request."""
NEAR = math.log(10.0)
"""A guardrail whose e-value is within a factor of 10 of its limit is near firing: that holds promotions and ramps, and
is what people are warned of, on the page and in the terminal.
"""


def describe(check: Check, limit: float, status: GuardrailStatus) -> None:
    """Fill in the figures of a check at its limit (ln E). Raises whatever the check raises."""
    status.metric, status.relative = check.family, not check.absolute
    status.log_e = check.log_e()
    status.near = status.log_e >= limit - NEAR
    loud = status.fired or status.log_e >= LOUD
    measure = check.measure(limit) if loud else check.calm(limit)
    status.value_a, status.value_b, status.unit = measure.value_a, measure.value_b, measure.arm_unit
    status.effect, status.quantity, status.text = measure.value, measure.quantity, measure.text
    if measure.quantity not in {"p95", "p99"}:
        status.effect_low, status.effect_high = check.interval(DISPLAYED)
    status.n_a, status.n_b, status.bad_b = measure.n_a, measure.n_b, check.bad_units()
