"""Reductions under way: when the next step is due, and whether the stable model can take it now."""

from dataclasses import dataclass

from schemas.v1.experiment import Descent, Experiment
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.router.control.parts import Parts
from services.router.domain.capacity import Step, next_step
from services.router.domain.commands import Descend, Wait
from services.router.domain.descending import under_way, wanted_bp

log = get_logger(__name__)

STEP_S = 10.0
"""Between two steps, so that the stable model can show how it takes one."""


@dataclass(slots=True)
class _Seen:
    """What this router has seen of one descent at its present share; times are monotonic seconds.

    ``blocked`` is since when a step has been due and not possible, ``waiting`` for what now, and since when;
    ``written`` is what the entry says, and since when.
    """

    share_bp: int
    since: float
    blocked: float | None = None
    waiting: str = ""
    waiting_since: float = 0.0
    written: str = ""
    written_since: float = 0.0
    logged: str = ""


class Descents:
    """The next command of every descent. Any router steps; compare-and-set on the version lets one of them."""

    def __init__(self, parts: Parts, step_s: float = STEP_S) -> None:
        self._parts = parts
        self._step_s = step_s
        self._seen: dict[str, _Seen] = {}

    def keep(self, test_ids: set[str]) -> None:
        """Forget all other tests."""
        for test_id in self._seen.keys() - test_ids:
            del self._seen[test_id]

    def command(self, test: Experiment, now: int) -> Descend | Wait | None:
        """What is to be done about the test at ``now`` (Unix ms); None for nothing."""
        descent = under_way(test)
        if descent is None:
            self._seen.pop(test.test_id, None)
            return None
        seen = self._seen.get(test.test_id)
        if seen is None or seen.share_bp != test.share_bp:
            seen = self._seen[test.test_id] = _Seen(test.share_bp, monotonic())
        if not self._due(descent, seen, now):
            return None
        load = self._parts.path().load
        step = next_step(
            test.share_bp, wanted_bp(test, descent), model=test.model_a, stable=load(test.model_a),
            canary=load(test.model_b),
        )  # fmt: skip
        if step.share_bp is not None:
            return Descend(test.test_id, test.version, step.share_bp)
        return self._wait(test, descent, seen, step)

    def _due(self, descent: Descent, seen: _Seen, now: int) -> bool:
        if not descent.stepped_ms or now - descent.stepped_ms >= self._step_s * 1000:
            return True
        # Another router's clock may be ahead: then one's own patience counts.
        return monotonic() - seen.since >= self._step_s

    def _wait(self, test: Experiment, descent: Descent, seen: _Seen, step: Step) -> Wait | None:
        """Write down what is waited for: a first reason soon, another one when it has stood for some steps.

        Reasons may alternate, and routers see different latencies: neither may make a change of each look.
        """
        now = monotonic()
        if seen.blocked is None:
            seen.blocked = now
        if seen.waiting != step.waiting:
            seen.waiting, seen.waiting_since = step.waiting, now
        if seen.written != descent.waiting:
            seen.written, seen.written_since = descent.waiting, now
        soon = self._step_s / 10
        if now - seen.waiting_since >= soon and seen.logged != step.waiting:
            seen.logged = step.waiting
            log.info(
                "descent_waits", test_id=test.test_id, share_bp=test.share_bp, waits_for=step.waiting,
                because=step.figures,
            )  # fmt: skip
        if descent.waiting:
            stood = now - max(seen.waiting_since, seen.written_since)
            due = descent.waiting != step.waiting and stood >= 3 * self._step_s
        else:
            due = now - seen.blocked >= soon
        return Wait(test.test_id, test.version, step.waiting) if due else None
