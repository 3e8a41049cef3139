"""The state machine of one test's evidence: ticks in, findings out. No clock, no I/O; its state is JSON."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from schemas.v1.common import TestStatus
from schemas.v1.experiment import Experiment
from schemas.v1.query import GuardrailStatus
from services.monitor.domain import guardrails
from services.monitor.domain.checks import Check, ordinal
from services.monitor.domain.evidence import FULL_SHARE, Phase, Tick, arrivals
from services.monitor.domain.findings import (
    ACTIONS,
    BOTH_ARMS,
    MIXED_MODELS,
    MONITORING_FAILURE,
    NO_DATA,
    REPEATED,
    SAMPLE_RATIO,
    STEP_DOWN,
    Finding,
    Kind,
)
from services.monitor.domain.health import FAILURES, CheckHealth
from services.monitor.domain.stable import StableWatch
from services.monitor.domain.standing import describe
from services.monitor.domain.statistics import ErrorNonInferiority, FewerErrors, SampleRatio
from services.monitor.domain.totals import Totals
from services.monitor.domain.trials import Trials

FORMAT = 5
"""Of checkpoints: a state of another format, or of other checks, is recomputed from WINDOWS."""

_SRM = "sample_ratio"
_NON_INFERIOR = "error_non_inferiority"
_FEWER = "fewer_errors"


class StateError(ValueError):
    """A checkpoint that does not belong to this test or this version of the checks."""


class TestEvaluator:
    """All evidence about one test.

    Invariants: the same windows in the same order give the same state bit for bit, whatever was checkpointed and
    restored in between; a tick that came before changes nothing; a check that raises affects only itself.
    """

    __test__ = False

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.checks, self.levels = guardrails.build(experiment)
        self.started_s = (experiment.started_ms or experiment.created_ms) // 1000
        self.epoch = 0
        self.epoch_requests = 0
        self.second: int | None = None
        self.sequence = 0
        self.ticks = 0
        self.share_bp = 0
        self.totals = Totals()
        self.trials = {STEP_DOWN: Trials(), **{c.name: Trials() for c in self.checks if c.action == "pause"}}
        """Of all checks that step down together, and of each one that pauses by its name."""
        self.at_share: dict[int, dict[str, int]] = {}
        """Requests that finished since the last step down, by the share applied and by variant."""
        self.sample_ratio = SampleRatio()
        success = experiment.success_criteria
        self.non_inferiority = ErrorNonInferiority(
            1.0 + success.max_error_rate_increase_percent / 100.0, success.negligible_error_rate_percent / 100.0
        )
        self.fewer_errors = FewerErrors()
        self.findings: list[Finding] = []
        self.health = CheckHealth()
        self.stable = StableWatch(self.checks)
        self.exceptions: list[tuple[str, Exception]] = []
        """Of the last tick, for the log."""
        self._paused = self._resumed = False
        self._last_data: int | None = None

    @property
    def fired(self) -> Finding | None:
        """The finding that calls for a rollback, once there is one; it is final."""
        return next((finding for finding in self.findings if finding.kind == "rollback"), None)

    def limit(self, check: Check) -> float:
        """The ln E at which a check fires now: the level of its share of alpha, in the present epoch and trial."""
        level = self.levels.limit(self.epoch, check.name)
        trials = self.trials_of(check)
        if trials is None:
            return level
        if trials.armed(check.name):
            return trials.limit(check.name, level)
        log_e = self.log_e(check)
        return trials.limit(check.name, level, log_e if math.isfinite(log_e) else 0.0)

    def trials_of(self, check: Check) -> Trials | None:
        """The trials of a check that may fire more than once."""
        return self.trials.get(STEP_DOWN if check.action == STEP_DOWN else check.name)

    def policy(self, name: str, default: str) -> str:
        """A policy of the test."""
        return str(self.experiment.policies.get(name, default))

    def tick(self, tick: Tick) -> list[Finding]:
        """Take in a closed tick; what it newly shows."""
        if tick.sequence <= self.sequence:
            return []
        self.exceptions = []
        known = len(self.findings)
        self.second = second = tick.second if self.second is None else max(tick.second, self.second)
        self.sequence = tick.sequence
        self.ticks += 1
        paused = self.experiment.status is TestStatus.PAUSED
        self._resumed, self._paused = self._paused and not paused, paused
        phases = tick.phases()
        self.totals.add(second, tick.cells)
        for cell in tick.cells:
            done = self.at_share.setdefault(cell.share_bp, {})
            done[cell.variant] = done.get(cell.variant, 0) + cell.done
        self._note_share(phases)
        self._whole_test(second, phases, tick)
        for epoch in sorted({self.epoch, *(phase.epoch for phase in phases if phase.epoch > self.epoch)}):
            if epoch > self.epoch:
                self._start_epoch(epoch)
            self._epoch(second, [phase for phase in phases if phase.epoch == epoch])
        self._run("stable", lambda: self._watch_stable(second, tick))
        for variant, models, text in self.totals.mixed():
            self._find("mixed_models", f"{MIXED_MODELS}.{variant}", text, number=models - 1)
        self._watch_data(second, tick)
        self._watch_checks(second)
        return self.findings[known:]

    def _note_share(self, phases: Sequence[Phase]) -> None:
        for phase in phases:
            if phase.pi > 0.0 and phase.a.done + phase.b.done:
                self.share_bp = round(phase.pi * FULL_SHARE)

    def _whole_test(self, second: int, phases: Sequence[Phase], tick: Tick) -> None:
        at = second - self.started_s
        units = [(p.pi, p.a.new_test, p.b.new_test) for p in phases]
        errors = [(p.pi, p.a.first_errors_test, p.b.first_errors_test) for p in phases]
        self._run(_SRM, lambda: self.sample_ratio.update(at, units))
        came = arrivals(tick.cells)
        self._run(_NON_INFERIOR, lambda: self.non_inferiority.update(at, errors, came))
        self._run(_FEWER, lambda: self.fewer_errors.update(at, errors, came))
        if self.sample_ratio.mismatch():
            self._mismatch()

    def _start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.epoch_requests = 0
        for check in self.checks:
            check.start_epoch(self.levels.plan.steps)
        for key, trials in self.trials.items():
            names = [check.name for check in self.checks if check.action == STEP_DOWN] if key == STEP_DOWN else [key]
            trials.start_epoch(self.second or 0, names, paused=self._paused)

    def _epoch(self, second: int, phases: Sequence[Phase]) -> None:
        tick = second - self.started_s - self.levels.plan.start(self.epoch)
        self.epoch_requests += sum(phase.a.done + phase.b.done for phase in phases)
        reached: list[tuple[float, Check]] = []
        for check in self.checks:

            def step(check: Check = check) -> None:
                check.update(tick, phases)
                log_e = check.log_e()
                if math.isnan(log_e):
                    raise ArithmeticError("ln E is not a number")
                if log_e >= self.limit(check):
                    reached.append((log_e, check))

            self._run(check.name, step)
        # The strongest evidence names the rule; the sort is stable, so equal ones go by the checks' order.
        reached.sort(key=lambda pair: -pair[0])
        self._decide([check for _, check in reached], second)

    def _decide(self, reached: Sequence[Check], second: int) -> None:
        """What follows for the checks that have reached their limits, the gravest action first."""
        for action in ("rollback", *REPEATED):
            for check in reached:
                if check.action == action:
                    self._run(check.name, partial(self._act, check, second))
        for check in reached:
            if check.action == "warn":
                self._run(check.name, partial(self._warn, check))
        for check in self.checks:
            waiting = self.trials_of(check)
            if waiting is not None and not waiting.armed(check.name):
                level = self.levels.limit(self.epoch, check.name)
                waiting.begin(second, check.name, self.log_e(check), level, resumed=self._resumed)

    def _run(self, name: str, step: Callable[[], None]) -> None:
        """Run one step of one check; its failure is that check's alone."""
        try:
            step()
        except Exception as exc:
            self.exceptions.append((name, exc))

    def _act(self, check: Check, second: int) -> None:
        """Take the action of a check that has reached its limit, once for all checks of that action."""
        both = check.absolute and check.control_bad()
        if both and self.policy("on_both_arms_bad", "alert") != "rollback":
            number = self.stable.both(check.family, second, self.epoch)
            self._find_check("both_arms", f"{BOTH_ARMS}.{check.family}", check, "both arms exceed the limit, ", number)
        elif self.fired is not None or check.bad_units() < guardrails.MIN_BAD_UNITS or not check.worse():
            return
        elif check.action == "step_down":
            self._step_down(check, second)
        elif check.action == "pause":
            trials = self.trials[check.name]
            self._find_check("pause", check.name, check, number=trials.count + 1)
            trials.took(second, None)
        elif check.action == "rollback":
            self._find_check("rollback", check.name, check)

    def _step_down(self, check: Check, second: int) -> None:
        """Step down, or roll back where as many steps down as there are retries did not help."""
        trials, retry = self.trials[STEP_DOWN], self.experiment.retry
        if not trials.armed(check.name):
            return
        number = trials.count + 1
        if trials.count >= max(1, retry.max_retries):
            made = min(trials.count, retry.max_retries)
            after = f"{made} {'retry' if made == 1 else 'retries'}" if made else "a step down without retry"
            self._find_check("rollback", check.name, check, f"{ordinal(number)} failure after {after}: ")
            return
        self._find_check("step_down", check.name, check, number=number)
        trials.took(second, math.ceil(60.0 * retry.backoff_minutes * 2.0**trials.count))
        self.at_share = {}

    def _warn(self, check: Check) -> None:
        acted = check.name.removesuffix("_warning")
        if not check.worse():
            return
        if acted != check.name and any(f.kind in ACTIONS and f.rule == acted for f in self.findings):
            return
        prefix = "both arms, " if check.absolute and check.control_bad() else ""
        self._find_check("warning", check.name, check, prefix)

    def _find_check(self, kind: Kind, rule: str, check: Check, prefix: str = "", number: int = 1) -> None:
        if any(f.kind == kind and f.rule == rule and f.number == number for f in self.findings):
            return
        limit, log_e = self.limit(check), check.log_e()
        # A trial that began far below E = 1 may fire at a low E: what is shown of the effect takes the whole level.
        measure = check.measure(max(limit, self.levels.limit(self.epoch, check.name)))
        bound = check.threshold if measure.bound is None and not check.absolute else measure.bound
        self._find(
            kind, rule, f"{prefix}{measure.text} (ln E {log_e:.2f}, needed {limit:.2f})", log_e=log_e, limit=limit,
            value=measure.value, bound=bound, threshold=measure.threshold, unit=measure.unit,
            value_a=measure.value_a, value_b=measure.value_b, n_a=measure.n_a, n_b=measure.n_b,
            bad_units=check.bad_units(), number=number,
        )  # fmt: skip

    def _find(self, kind: Kind, rule: str, text: str, **numbers: Any) -> None:
        finding = Finding(
            kind=kind, rule=rule, text=text, tick=self.second or 0, sequence=self.sequence, epoch=self.epoch,
            share_bp=self.share_bp, **numbers,
        )  # fmt: skip
        if all(known.key != finding.key for known in self.findings):
            self.findings.append(finding)

    def _mismatch(self) -> None:
        a, b = self.totals.of("a").units, self.totals.of("b").units
        log_e, limit = self.sample_ratio.log_e(), -math.log(self.sample_ratio.alpha)
        share = 100.0 * b / (a + b) if a + b else 0.0
        kind: Kind = "rollback" if self.policy("on_srm", "hold") == "rollback" else "sample_ratio"
        if kind == "rollback" and self.fired is not None:
            return
        self._find(
            kind, SAMPLE_RATIO,
            f"sample ratio mismatch: {b} of {a + b} units ({share:.2f} %) are B's at a configured share of "
            f"{self.share_bp / 100:g} % (ln E {log_e:.2f}, needed {limit:.2f})",
            log_e=log_e, limit=limit, value=share, threshold=self.share_bp / 100, unit="%", n_a=a, n_b=b,
        )  # fmt: skip

    def _watch_stable(self, second: int, tick: Tick) -> None:
        for found in self.stable.tick(second, self.epoch, tick.cells):
            self._find(**found)

    def _watch_data(self, second: int, tick: Tick) -> None:
        if self._last_data is None or any(cell.done or cell.admitted or cell.overdue for cell in tick.cells):
            self._last_data = second
        policy = self.policy("on_no_data", "hold")
        patience = 5.0 * self.experiment.check_interval_seconds
        if policy == "hold" or self.experiment.share_bp == 0 or second - self._last_data < patience:
            return
        if policy == "rollback" and self.fired is not None:
            return
        self._find(
            "rollback" if policy == "rollback" else "no_data", NO_DATA,
            f"no request for {second - self._last_data} s, more than 5 checks of "
            f"{self.experiment.check_interval_seconds:g} s",
            value=float(second - self._last_data), threshold=patience, unit="s",
        )  # fmt: skip

    def _watch_checks(self, second: int) -> None:
        failed = dict(self.exceptions)
        names = [_SRM, _NON_INFERIOR, _FEWER, *(check.name for check in self.checks)]
        for name, episode, recovered in self.health.note(second, names, failed):
            if recovered:
                text = f"check {name} works again after {episode.count} failed ticks"
                self._find("check_recovered", name, text, number=episode.number)
            else:
                text = (
                    f"check {name} failed {FAILURES} times in a row ({episode.error}): this says nothing about the "
                    "canary; the other checks go on"
                )
                self._find("check_failing", name, text, number=episode.number)
        patience = FAILURES * self.experiment.check_interval_seconds
        worst = self.health.longest(second)
        if worst is None or worst[1] < patience or self.health.consecutive < FAILURES or self.fired is not None:
            return
        if self.policy("on_monitor_down", "rollback") == "rollback":
            name, seconds = worst
            self._find(
                "rollback", MONITORING_FAILURE,
                f"check {name} has failed for {seconds} s ({FAILURES} checks of "
                f"{self.experiment.check_interval_seconds:g} s): the canary is unwatched, not shown to be bad",
                value=float(seconds), threshold=patience, unit="s",
            )  # fmt: skip

    def log_e(self, check: Check) -> float:
        """Evidence (ln E) of a check; infinite when it cannot be evaluated."""
        try:
            log_e = check.log_e()
        except Exception:  # counted where ticks are taken in; here it only has to hold a promotion
            return math.inf
        return math.inf if math.isnan(log_e) else log_e

    def statuses(self) -> list[GuardrailStatus]:
        """How every guardrail stands; one that cannot tell says so by ln E of 0."""
        return [self._status(check) for check in self.checks]

    def _status(self, check: Check) -> GuardrailStatus:
        limit = self.limit(check)
        status = GuardrailStatus(name=check.name, action=check.action, log_e=0.0, limit=limit)
        status.fired = any(f.kind in ACTIONS and f.rule == check.name for f in self.findings)
        status.warned = any(f.kind == "warning" and f.rule == check.name for f in self.findings)
        status.threshold = check.threshold
        trials = self.trials_of(check)
        if trials is not None:
            status.times = trials.count
            if not trials.armed(check.name) and trials.quiet_until is not None:
                status.quiet_until_ms = 1000 * trials.quiet_until

        def fill() -> None:
            describe(check, limit, status)
            status.needs_requests = check.needs(self.epoch_requests, limit)

        self._run(check.name, fill)
        return status

    def to_dict(self) -> dict[str, Any]:
        """Checkpoint: JSON that `from_dict` turns into an evaluator that goes on bit for bit."""
        return {
            "format": FORMAT,
            "test_id": self.experiment.test_id,
            "checks": [[c.name, c.kind, c.action, c.threshold, c.to_dict()] for c in self.checks],
            "epoch": [self.epoch, self.epoch_requests],
            "tick": [self.second, self.sequence, self.ticks, self.share_bp, self._last_data],
            "totals": self.totals.to_dict(),
            "trials": {key: trials.to_dict() for key, trials in self.trials.items()},
            "paused": self._paused,
            "at_share": [[share, done] for share, done in self.at_share.items()],
            "sample_ratio": self.sample_ratio.to_dict(),
            "non_inferiority": self.non_inferiority.to_dict(),
            "fewer_errors": self.fewer_errors.to_dict(),
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "health": self.health.to_dict(),
            "stable": self.stable.to_dict(),
        }

    @classmethod
    def from_dict(cls, experiment: Experiment, state: dict[str, Any]) -> "TestEvaluator":
        """Restore a checkpoint. Raises StateError when it is another test's or other checks'."""
        evaluator = cls(experiment)
        wanted = [[check.name, check.kind, check.action, check.threshold] for check in evaluator.checks]
        if state.get("format") != FORMAT or state.get("test_id") != experiment.test_id:
            raise StateError("the checkpoint has another format or is of another test")
        if [entry[:4] for entry in state["checks"]] != wanted:
            raise StateError("the checkpoint holds other checks than this test has")
        for check, entry in zip(evaluator.checks, state["checks"], strict=True):
            check.load(entry[4])
        evaluator.epoch, evaluator.epoch_requests = state["epoch"]
        evaluator.second, evaluator.sequence, evaluator.ticks, evaluator.share_bp, evaluator._last_data = state["tick"]
        evaluator.totals = Totals.from_dict(state["totals"])
        evaluator.trials = {key: Trials.from_dict(state["trials"][key]) for key in evaluator.trials}
        evaluator._paused = state["paused"]
        evaluator.at_share = {share: dict(done) for share, done in state["at_share"]}
        evaluator.sample_ratio = SampleRatio.from_dict(state["sample_ratio"])
        evaluator.non_inferiority.load(state["non_inferiority"])
        evaluator.fewer_errors = FewerErrors.from_dict(state["fewer_errors"])
        evaluator.findings = [Finding.model_validate(value) for value in state["findings"]]
        evaluator.health = CheckHealth.from_dict(state["health"])
        evaluator.stable.load(state["stable"])
        return evaluator
