"""Watches every running test: reads windows, evaluates, leads or follows, acts. All decisions are the domain's."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from nats.errors import Error as NatsError
from nats.js.errors import APIError
from nats.js.errors import Error as JetStreamError

from schemas.v1.control import MonitoringState
from schemas.v1.experiment import Experiment
from schemas.v1.query import Lease
from services._runtime.bus import Bus
from services._runtime.clock import monotonic, now_ms
from services._runtime.reader import PositionError
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.monitor import telemetry
from services.monitor.acting import Actor
from services.monitor.adapters.nats_acts import Acts
from services.monitor.adapters.nats_experiments import Experiments
from services.monitor.adapters.nats_state import StateStore
from services.monitor.adapters.nats_windows import WindowFeed, WindowMessage, position_before
from services.monitor.domain.findings import Finding
from services.monitor.domain.health import FAILURES
from services.monitor.settings import MonitorSettings
from services.monitor.track import Track

log = get_logger(__name__)

_BUS_FAILURES = (NatsError, APIError, JetStreamError, TimeoutError, OSError)
_RETRY_S = 0.2


class Watcher:
    """One replica of the monitor. Every replica evaluates every test; the leader of a test acts for it."""

    def __init__(self, bus: Bus, settings: MonitorSettings, replica: str | None = None) -> None:
        self._bus = bus
        self._settings = settings
        self.replica = replica or f"m{secrets.token_hex(4)}"
        self.tracks: dict[str, Track] = {}
        self._acts = Acts(bus)
        self._state = StateStore(bus, self.replica, settings.takeover_s)
        default = MonitoringState(active=settings.active, check_interval_seconds=settings.check_interval_seconds)
        self.experiments = Experiments(bus, default, self._kick_reconcile)
        self._actor = Actor(self._acts, self.experiments, settings, self._save)
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._feed: WindowFeed | None = None
        self.progress = asyncio.Condition()
        self.sequence = 0
        self.created = ""
        self.batches: dict[int, dict[str, int]] = {}
        self.window_ms: int | None = None
        self.window_at: float | None = None
        self.checked_ms: int | None = None
        self.checks_total = 0

    async def start(self) -> None:
        """Follow the buckets, then the stream from its end (each test reads its own past)."""
        await self._state.start()
        await self.experiments.start()
        for run in (self._consume, self._reconcile, self._beat, self._act):
            task = asyncio.create_task(self._forever(run), name=f"monitor{run.__name__}")
            self._tasks.add(task)

    async def stop(self) -> None:
        """Checkpoint and hand over what this replica leads, then stop."""
        await end(*self._tasks, *self._following.values())
        now = monotonic()
        for test_id, track in self.tracks.items():
            if track.leads(now) and self._bus.connected:
                await self._state.save(test_id, track.checkpoint(self.created))
                await self._state.release(test_id, track.published)
        if self._feed is not None:
            with contextlib.suppress(*_BUS_FAILURES):
                await self._feed.close()
        await self.experiments.stop()
        await self._state.stop()

    def missing(self) -> str | None:
        """For readiness: what this replica still lacks."""
        if self._feed is None:
            return "WINDOWS has not been opened yet"
        behind = sorted(test_id for test_id, track in self.tracks.items() if not track.joined)
        return f"still reading the evidence of {', '.join(behind)}" if behind else None

    def sighted(self) -> bool:
        """Whether windows keep coming."""
        return self.window_at is not None and monotonic() - self.window_at < self._settings.blind_after_s

    async def _forever(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await run()
            except _BUS_FAILURES as exc:
                log.warning("monitor_task_retries", task=run.__name__, error=repr(exc))
            except PositionError:
                log.exception("windows_went_back")
                self._feed = None
            except Exception:
                log.exception("monitor_task_failed", task=run.__name__)
            await asyncio.sleep(_RETRY_S)

    # Reading

    async def _consume(self) -> None:
        if self._feed is None:
            info = await self._bus.js.stream_info("WINDOWS")
            # A little of the past tells how far each partition's writer has come.
            feed = WindowFeed(self._bus, max(0, int(info.state.last_seq) - 64))
            await feed.open()
            self.created, self.sequence, self._feed = feed.created, feed.position, feed
            self._changed.set()
        while True:
            if await self._feed.read(self._on_window):
                async with self.progress:
                    self.progress.notify_all()

    def _on_window(self, message: WindowMessage) -> None:
        self.sequence = message.sequence
        self.window_ms = message.time_ms
        self.window_at = monotonic()
        self.batches[message.window.partition] = message.window.watermark.batches
        telemetry.WINDOWS.inc()
        for track in self.tracks.values():
            if track.joined:
                self._take(track, message)

    def _take(self, track: Track, message: WindowMessage) -> None:
        ticks, impossible = track.evaluator.ticks, track.ticker.impossible
        try:
            found = track.take(message)
        except Exception:
            # Not one check but the evaluation itself: the lease stops, so that routers apply on_monitor_down.
            track.blind += 1
            telemetry.FAILED_CHECKS.labels("evaluation").inc()
            log.exception("evaluation_failed", test_id=track.experiment.test_id)
            return
        if track.ticker.impossible > impossible:
            log.error("window_has_impossible_numbers", test_id=track.experiment.test_id, sequence=message.sequence)
        if track.evaluator.ticks == ticks:
            return
        track.blind = 0
        self.checks_total += 1
        self.checked_ms = message.time_ms
        telemetry.TICKS.inc()
        log.debug("checked", test_id=track.experiment.test_id, windows_seq=message.sequence, ticks=ticks + 1)
        for name, exc in track.evaluator.exceptions:
            telemetry.FAILED_CHECKS.labels(name).inc()
            log.error("check_failed", test_id=track.experiment.test_id, check=name, error=repr(exc))
        if found:
            self._note(track, found)

    def _note(self, track: Track, found: list[Finding]) -> None:
        for finding in found:
            log.warning(
                "finding", test_id=track.experiment.test_id, kind=finding.kind, rule=finding.rule, text=finding.text
            )
        self._actor.kick()

    # Which tests

    def _kick_reconcile(self) -> None:
        self._changed.set()

    async def _reconcile(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._feed is None:
                continue
            watched = self.experiments.watched()
            for test_id in [test_id for test_id in self.tracks if test_id not in watched]:
                self._drop(test_id)
            for test_id, experiment in watched.items():
                track = self.tracks.get(test_id)
                if track is not None:
                    track.evaluator.experiment = experiment
                    track.note_done()
                elif test_id not in self._following:
                    task = asyncio.create_task(self._follow(experiment), name=f"follow-{test_id}")
                    self._following[test_id] = task
                    task.add_done_callback(partial(self._followed, test_id))
            self._actor.kick()

    def _followed(self, test_id: str, _task: asyncio.Task[None]) -> None:
        self._following.pop(test_id, None)
        self._changed.set()

    def _drop(self, test_id: str) -> None:
        log.info("test_ended", test_id=test_id)
        track = self.tracks.pop(test_id)
        if track.leads(monotonic()):
            self._actor.close(track)
        follow = self._following.get(test_id)
        if follow is not None:
            follow.cancel()

    async def _follow(self, experiment: Experiment) -> None:
        """Bring one test's evidence from its checkpoint, or from its start, up to where the main reader is."""
        try:
            track = await self._open_track(experiment)
            self.tracks[experiment.test_id] = track
            feed = WindowFeed(self._bus, track.ticker.sequence, dead_letters=False)
            await feed.open()
            try:
                while not track.joined:
                    # No await between the look at the main reader's position and joining it.
                    if feed.position >= self.sequence:
                        track.joined = True
                    else:
                        await feed.read(lambda message: self._take(track, message))
            finally:
                await feed.close()
        except Exception:
            # Whatever it was, the test must not go unwatched: begin again.
            log.exception("follow_failed", test_id=experiment.test_id)
            self.tracks.pop(experiment.test_id, None)
            await asyncio.sleep(_RETRY_S)
            return
        log.info("test_followed", test_id=experiment.test_id, sequence=track.ticker.sequence)
        self._actor.kick()
        async with self.progress:
            self.progress.notify_all()

    async def _open_track(self, experiment: Experiment) -> Track:
        checkpoint = self._state.checkpoint(experiment.test_id)
        if checkpoint is not None and checkpoint.created == self.created and checkpoint.sequence > 0:
            try:
                track = Track.restored(experiment, checkpoint)
            except ValueError as exc:
                log.warning("checkpoint_refused", test_id=experiment.test_id, reason=str(exc))
            else:
                log.info("checkpoint_restored", test_id=experiment.test_id, sequence=checkpoint.sequence)
                return track
        started = experiment.started_ms or experiment.created_ms
        after = await position_before(self._bus, max(0, started - round(self._settings.clock_skew_s * 1000)))
        # What is after the main reader's position would be handed over twice otherwise.
        return Track.new(experiment, min(after, self.sequence))

    # Leading

    async def _beat(self) -> None:
        while True:
            began = monotonic()
            live = set(self.experiments.watched())
            await asyncio.gather(*(self._beat_one(track) for track in list(self.tracks.values()) if track.joined))
            for test_id in self._state.abandoned(live, self._settings.forget_s):
                await self._state.forget(test_id)
            self._publish_metrics()
            await asyncio.sleep(max(0.0, self._settings.beat_s - (monotonic() - began)))

    async def _beat_one(self, track: Track) -> None:
        test_id = track.experiment.test_id
        asked = monotonic()
        led = track.leads(asked)
        lead = await self._state.claim(test_id, track.published)
        if lead is None:
            known, _ = self._state.lead(test_id)
            if known is not None and known.holder != self.replica:
                track.leads_until = 0.0
                track.published |= set(known.published)
            return
        track.leads_until = asked + self._settings.takeover_s
        track.counter = lead.counter
        track.published |= set(lead.published)
        now = monotonic()
        if not led:
            log.info("leading", test_id=test_id, replica=self.replica)
            self._actor.kick()
            self._adopt(track)
        if now - track.leased_at >= self._settings.lease_s - 0.05 and self.sighted() and track.blind < FAILURES:
            track.leased_at = now
            await self._acts.lease(Lease(test_id=test_id, counter=track.counter, holder=self.replica))
        if now - track.saved_at >= self._settings.checkpoint_s:
            await self._save(track)

    def _adopt(self, track: Track) -> None:
        """A predecessor's requests go on under their own ids."""
        checkpoint = self._state.checkpoint(track.experiment.test_id)
        if checkpoint is not None and checkpoint.created == self.created:
            try:
                before = Track.restored(track.experiment, checkpoint)
            except ValueError as exc:
                log.warning("checkpoint_refused", test_id=track.experiment.test_id, reason=str(exc))
            else:
                track.order, track.action = track.order or before.order, track.action or before.action

    async def _save(self, track: Track) -> None:
        track.saved_at = monotonic()
        await self._state.save(track.experiment.test_id, track.checkpoint(self.created))

    async def _act(self) -> None:
        await self._actor.act(lambda: list(self.tracks.values()))

    def _publish_metrics(self) -> None:
        now = monotonic()
        telemetry.TESTS.set(len(self.tracks))
        telemetry.LEADING.set(sum(track.leads(now) for track in self.tracks.values()))
        telemetry.SEQUENCE.set(self.sequence)
        if self.window_ms is not None:
            telemetry.LAG.set(max(0.0, (now_ms() - self.window_ms) / 1000))
