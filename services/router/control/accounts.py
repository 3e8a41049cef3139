"""Tests told to people: one with its time line and its charts, and all live ones at once for whoever watches."""

import asyncio

from pydantic import BaseModel
from typing_extensions import override

from schemas.v1 import record as r
from schemas.v1.control import StatusReply
from schemas.v1.experiment import Experiment, VerdictRecord
from services._runtime.clock import now_ms
from services.router.control import params as p
from services.router.control.base import Done
from services.router.control.reads import Counted, Judged
from services.router.control.records import PATIENCE_S, TOLD_HELD_S, Records, until
from services.router.domain import account
from services.router.domain.auth import Principal, Role
from services.router.domain.refusals import Refused
from services.router.domain.suggesting import ModelStanding, Suggestion, suggested

SERIES_WAIT_MS = 1000
"""How long a chart waits for evidence that is still being read: what there is of it is drawn meanwhile."""
_SERIES_HELD_S = 3.0
"""Several pages look at the same test: its evidence is not asked for again for each of them."""


class Snapshot(BaseModel):
    """How everything stands: live tests (newest first), models, what a start form begins with."""

    at_ms: int
    monitoring_active: bool
    tests: list[account.TestAccount]
    models: list[ModelStanding]
    start: Suggestion
    degraded: list[str]


class Accounts(Records):
    """One method for each question: ``(principal, params) -> Done``. All raise Refused."""

    async def summary(self, who: Principal, params: p.TestParams) -> Done:
        """A live test as it stands, or what is on record of one that ended."""
        test = self._parts.experiments.by_id(params.test_id)
        if test is None or not test.live:
            return Done(account.ended(await self.gathered(who, params.test_id)), params.test_id)
        status, (changes, unknown), (alerts, missing) = await asyncio.gather(
            self._status(test, [each.test_id for each in self._parts.experiments.running()]),
            self._changes(test),
            self._alerts(test.test_id),
        )
        told = account.live(status, test, changes, alerts)
        return Done(told.model_copy(update={"notes": [*unknown, *missing]}), params.test_id)

    async def series(self, who: Principal, params: p.SeriesParams) -> Done:
        """What could be read of a test's evidence by now, as columns."""
        result = await self._result(who, params.test_id)
        found = await self._record(params.test_id, result.verdict)
        series = found.recent if params.span == "recent" else found.series
        return Done(
            p.SeriesShown(
                test_id=params.test_id, state=found.state, progress=found.progress, message=found.message, series=series
            ),
            params.test_id,
        )  # fmt: skip

    async def whoami(self, who: Principal, _params: p.NoParams) -> Done:
        """The key's name and role."""
        from services.router.control.verbs import EVENTS, VERBS

        may = [verb.name for verb in (*VERBS, EVENTS) if who.role >= verb.role]
        return Done(p.WhoAmI(name=who.name, role=Role(who.role).label, may=may))

    async def snapshot(self) -> bytes:
        """How everything stands, as JSON."""
        experiments = self._parts.experiments
        running = [test.test_id for test in experiments.running()]
        tests = list(reversed(experiments.live()))
        statuses = await self._statuses(tests, running)
        models = [
            ModelStanding(
                **{name: getattr(info, name) for name in ModelStanding.model_fields if hasattr(info, name)},
                in_use_by=[test.test_id for test in tests if info.name in {test.model_a, test.model_b}],
            )
            for info in self._parts.known_models()
        ]
        state = self._parts.monitoring.state
        picture = Snapshot(
            at_ms=now_ms(),
            monitoring_active=state.active,
            tests=[account.live(status, test) for status, test in zip(statuses, tests, strict=True)],
            models=models,
            start=self._suggestion(models, tests),
            degraded=self._parts.path().degraded(),
        )
        return picture.model_dump_json().encode()

    # ------------------------------------------------------------------------------------------------------

    def _suggestion(self, models: list[ModelStanding], tests: list[Experiment]) -> Suggestion:
        section = self._parts.settings.ab_testing
        model_a, model_b = suggested(models, tests, self._parts.experiments.results())
        return Suggestion(
            enabled=section.enabled,
            model_a=model_a,
            model_b=model_b,
            traffic_split_percent=section.default_traffic_split_percent,
            test_duration_minutes=section.max_test_duration_minutes,
            success_criteria=section.success_criteria.model_dump(mode="json"),
            failure_criteria=section.failure_criteria.model_dump(mode="json"),
        )

    @override
    async def _totals(self, tests: list[str]) -> Counted:
        ask = super()._totals
        return await self._parts.shared.ask(
            ("totals", *tests), lambda: ask(tests), who="metrics", within_s=PATIENCE_S, held_s=TOLD_HELD_S
        )

    @override
    async def _verdict(self, test: Experiment) -> Judged:
        ask, key = super()._verdict, ("verdict", test.test_id, test.version)
        return await self._parts.shared.ask(
            key, lambda: ask(test), who="monitor", within_s=PATIENCE_S, held_s=TOLD_HELD_S
        )

    async def _statuses(self, tests: list[Experiment], running: list[str]) -> list[StatusReply]:
        """One question to metrics for all of them, one to the monitor for each."""
        if not tests:
            return []
        counted, verdicts = await asyncio.gather(
            self._totals([test.test_id for test in tests]), asyncio.gather(*map(self._verdict, tests))
        )
        return [self._stands(test, running, counted, judged) for test, judged in zip(tests, verdicts, strict=True)]

    async def _changes(self, test: Experiment) -> tuple[list[r.TestChange], list[str]]:
        query = r.RecordQuery(test_id=test.test_id, wait_ms=0, evidence=False)
        key = ("changes", test.test_id, test.version)
        try:
            found = await self._parts.shared.ask(
                key, lambda: self._parts.queries.record(query), who="monitor", within_s=PATIENCE_S, held_s=TOLD_HELD_S
            )
        except Refused as exc:
            return [], [f"time line: {exc.message}"]
        return found.changes, []

    async def _record(self, test_id: str, verdict: VerdictRecord | None) -> r.RecordReply:
        query = r.RecordQuery(test_id=test_id, until=until(verdict), wait_ms=SERIES_WAIT_MS)
        key = ("series", test_id, query.until)
        return await self._parts.shared.ask(
            key, lambda: self._parts.queries.record(query), who="monitor", within_s=PATIENCE_S, held_s=_SERIES_HELD_S
        )
