"""Stops, and what happens to experiments by time alone: end of duration, schedules, steps, stops left behind."""

import asyncio
from collections.abc import Awaitable, Callable

from schemas.v1.common import Decision, TestStatus
from schemas.v1.experiment import Experiment, TestResult, VariantSummary
from schemas.v1.query import FinalVerdictQuery
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.control.descents import STEP_S, Descents
from services.router.control.parts import Parts
from services.router.domain.commands import BeginRollback, BeginStop, Command, Complete, Launch
from services.router.domain.descending import SYSTEM
from services.router.domain.experiment import result_of
from services.router.domain.refusals import NotFound, Refused, Unavailable
from services.router.domain.views import by_variant, complete_totals

log = get_logger(__name__)

LOOK_S = 0.25
FLUSH_S = 1.0
VERDICT_S = 3.0
ABANDONED_MS = 5000
"""A stop older than this was left by a router that died: whoever sees it first finishes it."""
DURATION_REACHED = "test duration reached"


class Lifecycle:
    """One task that looks at every live experiment; at most one piece of work for each at a time.

    All routers do this; compare-and-set decides which of them acts. ``step_s`` is the time between the steps of a
    gradual rollback or a step down.
    """

    def __init__(self, parts: Parts, step_s: float = STEP_S) -> None:
        self._parts = parts
        self._descents = Descents(parts, step_s)
        self._work: dict[str, asyncio.Task[TestResult | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="lifecycle")

    async def stop(self) -> None:
        """End; a stop that is under way is finished by another router or after a restart."""
        await end(self._task, *self._work.values())

    async def stop_test(self, test: Experiment, reason: str, actor: str) -> TestResult:
        """Stop a test and wait for its result, at most some seconds; a caller that leaves does not end the stop.

        A test that is being rolled back gradually is rolled back at once: nothing else can come of it. Raises NotFound
        when the test ended before, Unavailable when the bus does not take the change.
        """
        if test.status is TestStatus.ROLLING_BACK and test.rollback is not None:
            return result_of(await self._parts.rollbacks.carry_out(test, test.rollback))
        task = self._begin(test.test_id, lambda: self._stop(test, reason, actor))
        result = await asyncio.shield(task)
        if result is None:
            raise Unavailable(
                f"test '{test.test_id}' is being stopped by another router that does not finish: ask again",
                retry_after_s=2,
            )
        return result

    # ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            live = self._parts.experiments.live()
            for test in live:
                self._look(test, now_ms())
            self._descents.keep({test.test_id for test in live})

    def _look(self, test: Experiment, now: int) -> None:
        if test.test_id in self._work:
            return
        if test.stopping is not None:
            if now - test.stopping.at_ms > ABANDONED_MS:
                self._begin(test.test_id, lambda: self._finish(test), quiet=True)
        elif test.rollback_at is not None and test.rollback_at.at_ms <= now:
            self._begin(test.test_id, lambda: self._roll_back(test, now), quiet=True)
        elif test.status is TestStatus.SCHEDULED:
            if test.started_ms is not None and test.started_ms <= now:
                self._begin(test.test_id, lambda: self._apply(test, Launch(test.test_id)), quiet=True)
        elif test.ends_ms is not None and test.ends_ms <= now and test.status is not TestStatus.ROLLING_BACK:
            self._begin(test.test_id, lambda: self._stop(test, DURATION_REACHED, SYSTEM), quiet=True)
        elif (command := self._descents.command(test, now)) is not None:
            self._begin(test.test_id, lambda: self._apply(test, command), quiet=True)

    async def _roll_back(self, test: Experiment, now: int) -> None:
        planned = test.rollback_at
        if planned is None:
            return
        order = planned.order.model_copy(update={"at_ms": now})
        if planned.speed == "gradual":
            await self._apply(test, BeginRollback(test.test_id, order))
        else:
            await self._parts.rollbacks.carry_out(test, order)

    def _begin(
        self, test_id: str, work: Callable[[], Awaitable[TestResult | None]], *, quiet: bool = False
    ) -> asyncio.Task[TestResult | None]:
        running = self._work.get(test_id)
        if running is not None:
            return running

        async def run() -> TestResult | None:
            try:
                return await work()
            except Refused as exc:
                log.info("not_carried_out", test_id=test_id, reason=exc.message)
                if quiet:
                    return None
                raise
            except Exception:
                log.exception("lifecycle_failed", test_id=test_id)
                if quiet:
                    return None
                raise

        task = asyncio.create_task(run(), name=f"lifecycle-{test_id}")
        self._work[test_id] = task
        task.add_done_callback(lambda done: self._done(test_id, done))
        return task

    def _done(self, test_id: str, task: asyncio.Task[TestResult | None]) -> None:
        self._work.pop(test_id, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller that waited for it may have gone

    async def _apply(self, test: Experiment, command: Command) -> None:
        await self._parts.experiments.change(test.model_a, lambda _state: command)
        self._parts.outbox.kick(test.model_a)

    async def _stop(self, test: Experiment, reason: str, actor: str) -> TestResult | None:
        mine = False

        def command(state: Experiment | None) -> Command:
            nonlocal mine
            mine = state is None or state.stopping is None
            return BeginStop(test.test_id, reason, actor)

        try:
            stopping = await self._parts.experiments.change(test.model_a, command)
        except NotFound:
            # Ended between the look-up and the change: what was asked for has happened.
            found = self._parts.experiments.result(test.test_id)
            if found is None:
                raise
            return found
        if mine:
            return await self._finish(stopping)
        ended = await self._parts.experiments.ended(test.test_id, ABANDONED_MS / 1000 + 1)
        if ended is None:
            # Its router is gone: this one was waiting, so nobody's timer here has taken it over.
            return await self._finish(stopping)
        return result_of(ended)

    async def _finish(self, test: Experiment) -> TestResult | None:
        complete = await self._decide(test)
        try:
            done = await self._parts.experiments.change(test.model_a, lambda _state: complete)
        except NotFound:
            # Rolled back, or finished by another router, while the verdict was awaited.
            found = self._parts.experiments.result(test.test_id)
            if found is None:
                ended = await self._parts.experiments.ended(test.test_id, 1)
                found = result_of(ended) if ended else None
            return found
        self._parts.outbox.kick(test.model_a)
        return result_of(done)

    async def _decide(self, test: Experiment) -> Complete:
        asked = test.stopping.reason if test.stopping else "stopped"
        flushed = await self._flush()
        query = FinalVerdictQuery(
            test_id=test.test_id, flushed=flushed, deadline_ms=int(VERDICT_S * 1000) - 500
        )
        try:
            final = await self._parts.queries.final_verdict(query, VERDICT_S)
        except Refused as exc:
            summary = await self._totals(test)
            why = f"no verdict, so inconclusive ({exc.message}); {asked}"
            return Complete(test.test_id, Decision.INCONCLUSIVE, why, None, summary)
        verdict = final.verdict
        reason = verdict.reason if final.complete else f"{verdict.reason} (the last facts had not arrived)"
        found = by_variant(final.metrics_summary) or await self._totals(test)
        summary = complete_totals(found, {}) if found else {}
        return Complete(test.test_id, verdict.decision, f"{reason}; {asked}", verdict, summary)

    async def _flush(self) -> dict[str, dict[int, int]]:
        try:
            return await self._parts.path().flush_facts(FLUSH_S)
        except Exception:
            # A stop must end with what is known; the verdict then says what it lacked.
            log.exception("facts_not_flushed")
            return {}

    async def _totals(self, test: Experiment) -> dict[str, VariantSummary]:
        try:
            totals = await self._parts.queries.totals([test.test_id])
        except Refused as exc:
            log.warning("totals_unknown", test_id=test.test_id, reason=exc.message)
            return {}
        return by_variant(totals.get(test.test_id, {}))
