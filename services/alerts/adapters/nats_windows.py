"""Reads WINDOWS and publishes the figures of longer windows. Nothing is acknowledged: the position is in the bucket.

It names, for each length, the last message before the window that is open, so that a restart sums the same windows
again under the same ids. Every replica reads; whoever comes second finds the position moved, or its message known.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from nats.errors import Error as NatsError
from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.events import TestEvent
from schemas.v1.integrations import MetricWindow
from schemas.v1.windows import Cell, Window
from services._runtime.bus import Bus, compare_and_set
from services._runtime.clock import now_ms
from services._runtime.reader import PositionError, SequenceReader, StreamMessage, life_of
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.alerts.domain.windows import Closed, WindowFold, metric_window

log = get_logger(__name__)

POSITION = "w.position"
OLDEST_MS = 6 * 3600 * 1000
"""What happened longer ago than this while no alerts service ran is not told any more."""
_BATCH = 32
"""Few, since each is decoded at once, on the loop that alerts are delivered by."""
_TESTS = 1000
_PATIENCE_S = 5.0

Place = tuple[int, int]
"""(sequence after which to read, Unix ms when it was noted)."""


class WindowTap:
    """Publishes through ``publish(seconds, window)``, which raises NATS errors.

    Of groups of fewer than ``least`` requests it tells counts alone.
    """

    def __init__(
        self, bus: Bus, lengths: set[int], publish: Callable[[int, MetricWindow], Awaitable[None]], least: int
    ) -> None:
        self._bus = bus
        self._lengths = sorted(lengths)
        self._publish = publish
        self._least = least
        self._task: asyncio.Task[None] | None = None
        self._models: dict[str, tuple[str, str]] = {}

    async def start(self) -> None:
        """Begin to read, where anybody wants windows: from now on, where nobody has read before."""
        if self._lengths:
            with contextlib.suppress(NatsError, TimeoutError, OSError):
                await self._begin()
            self._task = asyncio.create_task(self._run(), name="windows")

    async def stop(self) -> None:
        """End."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except PositionError as exc:
                log.error("windows_start_over", reason=str(exc))
                with contextlib.suppress(NatsError, TimeoutError, OSError):
                    await self._begin(at_end=True)
            except (NatsError, TimeoutError, OSError) as exc:
                log.warning("windows_wait", error=repr(exc))
            except Exception:
                log.exception("windows_failed")
            await asyncio.sleep(0.5)

    async def _follow(self) -> None:
        created, after = await self._begin()
        folds = {seconds: WindowFold(seconds) for seconds in self._lengths}
        windows = SequenceReader(self._bus, streams.WINDOWS.name, after=min(after.values()))
        tests = SequenceReader(self._bus, streams.EVENTS.name, subjects.event("test.started"))
        try:
            await windows.open(created)
            await tests.open()
            while True:
                for message in await windows.fetch(_BATCH, 1.0):
                    cells = _cells(message)
                    for seconds in self._lengths:
                        if message.sequence <= after[seconds]:
                            continue
                        closed = folds[seconds].add(message.time_ms, cells)
                        if closed is not None:
                            after[seconds] = message.sequence - 1
                            await self._tell(seconds, closed, tests, after[seconds], created)
        finally:
            await asyncio.shield(asyncio.gather(windows.close(), tests.close()))

    async def _tell(self, seconds: int, closed: Closed, tests: SequenceReader, position: int, created: str) -> None:
        """Publish a window that is over, unless another replica has, and move the position past it."""
        if closed.tests and (await self._stored(created)).get(str(seconds), (0, 0))[0] >= position:
            return
        for test_id in sorted(closed.tests):
            if test_id not in self._models:
                await self._learn(tests)
            models = self._models.get(test_id, ("", ""))
            await self._publish(seconds, metric_window(test_id, closed, seconds, models, self._least))
        await self._move(created, {seconds: position})

    async def _learn(self, tests: SequenceReader) -> None:
        """Which models the tests are of that began since."""
        async for message in tests.catch_up():
            with contextlib.suppress(ValidationError):
                event = CloudEvent[TestEvent].model_validate_json(message.data).data
                self._models.pop(event.test_id, None)
                self._models[event.test_id] = (event.model_a, event.model_b)
        for gone in list(self._models)[:-_TESTS]:
            del self._models[gone]

    # ------------------------------------------------------------------------------------------------------

    async def _begin(self, *, at_end: bool = False) -> tuple[str, dict[int, int]]:
        """(creation of the stream, sequence by length after which to read).

        What has no place of late begins at the end.
        """
        info = await self._bus.js.stream_info(streams.WINDOWS.name)
        created, end = life_of(info), int(info.state.last_seq)
        stored = {} if at_end else await self._stored(created)
        after = {}
        for seconds in self._lengths:
            sequence, at_ms = stored.get(str(seconds), (end, now_ms()))
            if now_ms() - at_ms > OLDEST_MS:
                log.warning("windows_skipped", seconds=seconds, messages=end - sequence)
                sequence = end
            after[seconds] = sequence
        await self._move(created, after, anew=at_end)
        return created, after

    async def _stored(self, created: str) -> dict[str, Place]:
        """Places by length in this very stream."""
        kv: Any = await self._bus.js.key_value(streams.ALERT_STATE.name)
        stored, _ = await compare_and_set(kv, POSITION, lambda _value: None, patience_s=_PATIENCE_S)
        return _places(stored, created)

    async def _move(self, created: str, after: dict[int, int], *, anew: bool = False) -> None:
        """Forward only, whoever comes first."""

        def change(value: bytes | None) -> bytes:
            places = {} if anew else _places(value, created)
            for seconds, sequence in after.items():
                places[str(seconds)] = (max(sequence, places.get(str(seconds), (0, 0))[0]), now_ms())
            return json.dumps({"created": created, "after": places}).encode()

        kv: Any = await self._bus.js.key_value(streams.ALERT_STATE.name)
        await compare_and_set(kv, POSITION, change, patience_s=_PATIENCE_S)


def _places(value: bytes | None, created: str) -> dict[str, Place]:
    known = json.loads(value) if value else {}
    if known.get("created") != created:
        return {}
    return {seconds: (int(sequence), int(at_ms)) for seconds, (sequence, at_ms) in known["after"].items()}


def _cells(message: StreamMessage) -> list[Cell]:
    """Empty for a window that cannot be read: the monitor says so."""
    try:
        return Window.model_validate_json(message.data).cells
    except ValidationError:
        return []
