"""What the leader of a test does about it: alerts, requests for rollbacks and lesser actions; decided in the domain.

Everything that is sent has an identity of its own and is repeated until it is seen to have arrived, so that a leader
may end at any point and a successor go on.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from schemas.v1.alerts import Alert
from schemas.v1.events import ActionRequested
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger
from services.monitor import telemetry
from services.monitor.adapters.nats_acts import Acts
from services.monitor.adapters.nats_experiments import Experiments
from services.monitor.domain import actions, alerts, ramp
from services.monitor.domain.findings import Finding
from services.monitor.settings import MonitorSettings
from services.monitor.track import Track

log = get_logger(__name__)


class Actor:
    """Acts for the tests that this replica leads; ``save`` stores a test's checkpoint."""

    def __init__(
        self, acts: Acts, experiments: Experiments, settings: MonitorSettings, save: Callable[[Track], Awaitable[None]]
    ) -> None:
        self._acts = acts
        self._experiments = experiments
        self._settings = settings
        self._save = save
        self._now = asyncio.Event()
        self._closing: list[Track] = []
        """Tests that ended while this replica led them, whose last alerts may still be unpublished."""

    def kick(self) -> None:
        """Something may be due: do not wait for the next round."""
        self._now.set()

    def close(self, track: Track) -> None:
        """A test that this replica led has ended."""
        self._closing.append(track)
        self._now.set()

    async def act(self, tracks: Callable[[], Iterable[Track]]) -> None:
        """Act for the tests led, again and again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.repeat_s):
                    await self._now.wait()
            self._now.clear()
            now = monotonic()
            leading = [track for track in tracks() if track.joined and track.leads(now)]
            closing, self._closing = self._closing, []
            await asyncio.gather(
                *(self._about(track) for track in leading), *(self._tell(track) for track in closing)
            )
            self._closing += [track for track in closing if _unpublished(track)]

    async def _about(self, track: Track) -> None:
        """Everything that a running test calls for now, at once."""
        active, evaluator = self._experiments.monitoring.active, track.evaluator
        track.note_done()
        jobs = [self._tell(track)]
        fired = evaluator.fired
        if fired is not None and alerts.acts(track.experiment, monitoring_active=active):
            jobs.insert(0, self._request_rollback(track, fired))
        else:
            wanted = actions.wanted(evaluator, track.published, monitoring_active=active)
            if wanted is not None:
                jobs.insert(0, self._request(track, wanted))
        if active:
            jobs.append(self._ask_approval(track))
        await asyncio.gather(*jobs)

    async def _tell(self, track: Track) -> None:
        active = self._experiments.monitoring.active
        await asyncio.gather(
            *(
                self._alert(
                    track, alerts.alert_id(track.experiment, finding),
                    alerts.alert_of(track.experiment, finding, monitoring_active=active),
                )
                for finding in _unpublished(track)
            )
        )  # fmt: skip

    async def _ask_approval(self, track: Track) -> None:
        planned = ramp.plan(track.evaluator)
        if planned is not None and planned.approval:
            alert_id, alert = alerts.approval(track.evaluator, planned.approval)
            if alert_id not in track.published:
                await self._alert(track, alert_id, alert)

    async def _alert(self, track: Track, alert_id: str, alert: Alert) -> None:
        if await self._acts.alert(alert_id, alert):
            track.published.add(alert_id)

    async def _request_rollback(self, track: Track, fired: Finding) -> None:
        now = monotonic()
        if now - track.ordered_at < self._settings.repeat_s * 0.9:
            return
        track.ordered_at = now
        first = track.order is None
        if track.order is None:
            _, track.order = alerts.rollback_request(track.evaluator, fired)
        event_id = alerts.event_id(track.order)
        await self._acts.rollback(event_id, track.order)
        log.warning("rollback_requested", test_id=track.experiment.test_id, rule=fired.rule, event_id=event_id)
        if first:
            telemetry.ROLLBACKS.inc()
            await self._save(track)

    async def _request(self, track: Track, wanted: ActionRequested) -> None:
        """Ask for an action; the same one again in the words in which it was asked for first."""
        now, event_id = monotonic(), actions.event_id(wanted)
        again = track.action is not None and actions.event_id(track.action) == event_id
        if again and now - track.acted_at < self._settings.repeat_s * 0.9:
            return
        request = track.action if again and track.action is not None else wanted
        track.action, track.acted_at = request, now
        await self._acts.action(event_id, request)
        log.info("action_requested", test_id=request.test_id, action=request.action, reason=request.order.reason)
        if not again:
            telemetry.ACTIONS.labels(request.action).inc()
            await self._save(track)


def _unpublished(track: Track) -> list[Finding]:
    known = track.published
    return [f for f in track.evaluator.findings if alerts.alert_id(track.experiment, f) not in known]
