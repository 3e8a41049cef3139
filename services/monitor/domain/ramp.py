"""What a ramp does next, and what it waits for: to its next step, or back up after a step down. Pure.

It sees what the routers wrote last (the ramp's step and since when, a setback, an approval) and the evidence up to the
last tick; time is the broker's. Reasons are made here, with their numbers.
"""

from dataclasses import dataclass, field
from typing import Literal

from schemas.v1.common import TestStatus
from schemas.v1.experiment import Ramp, RampStep
from schemas.v1.query import RampOutlook
from services.monitor.domain.checks import number
from services.monitor.domain.evaluator import TestEvaluator
from services.monitor.domain.evidence import FULL_SHARE
from services.monitor.domain.findings import REPEATED, STEP_DOWN
from services.monitor.domain.promotion import nearest
from services.monitor.domain.waiting import Condition, at_this_rate, requests_for

APPROVE = "POST /v1/ab-testing/approve or `cypria approve`"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is due now (``action``, None for nothing) and why; otherwise what is waited for.

    ``approval`` is what an operator is told while only an approval is missing, empty when not.
    """

    action: Literal["advance", "retry"] | None = None
    reason: str = ""
    approval: str = ""
    waits_for: str = ""
    conditions: list[Condition] = field(default_factory=list)

    def outlook(self) -> RampOutlook:
        """The plan as it is shown."""
        return RampOutlook(
            due=self.action or "", waits_for=self.waits_for or self.reason,
            conditions=[condition.model_dump(mode="json") for condition in self.conditions],
        )  # fmt: skip


def plan(evaluator: TestEvaluator) -> Plan | None:
    """What a test's split does next by itself; None where nothing ever will: no ramp, and no step down to take back."""
    experiment = evaluator.experiment
    setback, ramp = experiment.setback, experiment.ramp
    if setback is not None and setback.retry_at_ms is not None:
        return _retry(evaluator, setback.retry_at_ms, setback.from_bp, setback.count)
    if ramp is None:
        return None
    if setback is not None and setback.count > experiment.retry.max_retries:
        return Plan(waits_for="the ramp goes no further: B was stepped down and no retry is left")
    if ramp.held:
        return Plan(waits_for=f"the ramp goes no further by itself: {ramp.held}")
    if ramp.step + 1 >= len(ramp.steps):
        return Plan(waits_for=f"the ramp is at its last step, {_percent(ramp.steps[-1].share_bp)}")
    return _advance(evaluator, ramp)


def _retry(evaluator: TestEvaluator, due_ms: int, share_bp: int, count: int) -> Plan:
    now_ms = 1000 * (evaluator.second or 0)
    left = max(0, due_ms - now_ms) / 60_000
    found = [
        *_undisturbed(evaluator),
        Condition(name="backoff", met=left == 0, needs_minutes=left, text=f"{number(left)} minutes to the retry"),
        _rested(evaluator),
    ]
    what = f"retry {count} of {evaluator.experiment.retry.max_retries}, back to {_percent(share_bp)}"
    missing = [condition for condition in found if not condition.met]
    if missing:
        return Plan(waits_for=f"{what}, waits: {_texts(missing)}", conditions=found)
    return Plan("retry", f"{what}: the backoff is over and nothing has fired since", conditions=found)


def _advance(evaluator: TestEvaluator, ramp: Ramp) -> Plan:
    step, following = ramp.steps[ramp.step], ramp.steps[ramp.step + 1]
    found = [*_undisturbed(evaluator), _soak(evaluator, ramp, step), _sample(evaluator, step)]
    if step.gate != "none":
        found.append(_quiet(evaluator, ramp))
    missing = [condition for condition in found if not condition.met]
    here = f"step {ramp.step + 1} of {len(ramp.steps)} ({_percent(step.share_bp)})"
    if step.gate == "manual":
        approved = ramp.approved >= ramp.step
        text = "an operator has approved" if approved else f"approval: {APPROVE}"
        found.append(Condition(name="approval", met=approved, text=text, needs_requests=0))
        if not approved and not missing:
            done = _texts(found[:-1])
            return Plan(
                approval=f"ramp {here} waits for approval: {APPROVE}; next {_percent(following.share_bp)}; {done}",
                waits_for=f"{here} waits for approval: {APPROVE}", conditions=found,
            )  # fmt: skip
        missing = [condition for condition in found if not condition.met]
    if missing:
        return Plan(waits_for=f"{here} waits: {_texts(missing)}", conditions=found)
    return Plan("advance", f"ramp from {here} to {_percent(following.share_bp)}: {_texts(found)}", conditions=found)


def _undisturbed(evaluator: TestEvaluator) -> list[Condition]:
    """What keeps a split from going up whatever the gate; only what is in the way is listed."""
    experiment, fired = evaluator.experiment, evaluator.fired
    found = []
    if fired is not None:
        found.append(f"{fired.rule} has fired")
    if experiment.stopping is not None:
        found.append("the test is being stopped")
    elif experiment.status is not TestStatus.RUNNING:
        found.append(f"the test is {experiment.status.value.replace('_', ' ')}")
    if experiment.descent is not None:
        found.append("a reduction of the split is under way")
    return [Condition(name="running", met=False, text=text) for text in found]


def _soak(evaluator: TestEvaluator, ramp: Ramp, step: RampStep) -> Condition:
    passed = max(0.0, 1000 * (evaluator.second or 0) - ramp.since_ms) / 60_000
    missing = max(0.0, step.soak_minutes - passed)
    return Condition(
        name="soak", met=missing == 0, value=passed, needs_minutes=missing, needs_requests=0,
        text=f"{number(passed)} of {step.soak_minutes:g} minutes have passed",
    )  # fmt: skip


def _sample(evaluator: TestEvaluator, step: RampStep) -> Condition:
    done = evaluator.at_share.get(step.share_bp, {}).get("b", 0)
    more = requests_for(step.min_requests - done, step.share_bp / FULL_SHARE)
    text = f"{done} of {step.min_requests} requests of B finished at this split"
    if more:
        text += f": needs about {more} more requests{at_this_rate(evaluator, more)}"
    return Condition(name="sample_size", met=more == 0, value=float(done), text=text, needs_requests=more)


def _rested(evaluator: TestEvaluator) -> Condition:
    """After a step down the checks that made it are quiet; one that fires again has a backoff of its own."""
    trials = evaluator.trials[STEP_DOWN]
    quiet = trials.quiet(evaluator.second or 0)
    text = "stepped down again meanwhile" if quiet else "nothing has fired since"
    return Condition(name="rested", met=not quiet, text=text, needs_requests=0)


def _quiet(evaluator: TestEvaluator, ramp: Ramp) -> Condition:
    """No guardrail fired at this step or is near firing, and units are split as configured."""
    since = [f for f in evaluator.findings if f.kind in REPEATED and 1000 * f.tick >= ramp.since_ms]
    worst, log_e, bar = nearest(evaluator, trial_only=True)
    ratio = evaluator.sample_ratio
    if since:
        text = f"{since[-1].rule} has fired at this step (pause and resume the test to go on)"
    elif ratio.mismatch() and evaluator.policy("on_srm", "hold") != "warn":
        text = f"units are not split as configured (sample ratio mismatch, ln E {ratio.log_e():.2f})"
    elif not log_e < bar:
        text = f"{worst} is near firing (ln E {log_e:.2f}, hold from {bar:.2f})"
    elif evaluator.trials[STEP_DOWN].quiet(evaluator.second or 0):
        text = "B was stepped down a moment ago"
    else:
        text = f"no guardrail is near firing (the nearest is {worst}, ln E {log_e:.2f}, hold from {bar:.2f})"
        return Condition(name="guardrails", met=True, text=text, log_e=log_e, limit=bar, needs_requests=0)
    return Condition(name="guardrails", met=False, text=text)


def _texts(conditions: list[Condition]) -> str:
    return "; ".join(condition.text for condition in conditions)


def _percent(share_bp: int) -> str:
    return f"{share_bp / 100:g} %"
