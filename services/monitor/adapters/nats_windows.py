"""WINDOWS as the monitor reads it: in sequence, each message once, from any position."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pydantic import ValidationError

from schemas import streams
from schemas.v1.windows import Window
from services._runtime import bus as runtime
from services._runtime.bus import Bus
from services._runtime.reader import SequenceReader, StreamMessage
from services._runtime.telemetry import get_logger
from services.monitor import telemetry

log = get_logger(__name__)

STREAM = streams.WINDOWS.name
BATCH = 256
_YIELD_EVERY = 32


@dataclass(frozen=True, slots=True)
class WindowMessage:
    """A decoded window with its place in WINDOWS and the broker's time."""

    sequence: int
    time_ms: int
    window: Window


OnWindow = Callable[[WindowMessage], None]


class WindowFeed:
    """Windows after a position. What cannot be decoded goes to the DLQ and is passed over by everybody alike."""

    def __init__(self, bus: Bus, after: int, *, dead_letters: bool = True) -> None:
        self._bus = bus
        self._reader = SequenceReader(bus, STREAM, after=after)
        self._dead_letters = dead_letters

    @property
    def position(self) -> int:
        """The last sequence read."""
        return self._reader.position

    @property
    def end(self) -> int:
        """The last sequence of the stream when the feed was opened."""
        return self._reader.last_sequence

    @property
    def created(self) -> str:
        """When the stream was created (RFC 3339): a position is good for this stream only."""
        return self._reader.stream_created

    async def open(self) -> None:
        """Check the position against the stream. Raises PositionError when the stream ends before it."""
        await self._reader.open()

    async def read(self, on_window: OnWindow, timeout_s: float = 0.5) -> int:
        """Hand over the next messages; how many there were (0 after ``timeout_s`` without any)."""
        messages = await self._reader.fetch(BATCH, timeout_s)
        for index, message in enumerate(messages):
            window = await self._decode(message)
            if window is not None:
                on_window(WindowMessage(message.sequence, message.time_ms, window))
            if index % _YIELD_EVERY == _YIELD_EVERY - 1:
                await asyncio.sleep(0)  # leases and answers go on while a backlog is read
        return len(messages)

    async def exhausted(self) -> bool:
        """Whether nothing is left to read, also where the stream's last messages were removed."""
        return await self._reader.nothing_left()

    async def close(self) -> None:
        """Drop the consumer."""
        await self._reader.close()

    async def _decode(self, message: StreamMessage) -> Window | None:
        try:
            return Window.model_validate_json(message.data)
        except ValidationError as exc:
            reason = f"not a window: {exc.error_count()} errors, first: {exc.errors()[0]['msg']}"
        log.error("window_unreadable", sequence=message.sequence, reason=reason)
        if self._dead_letters:
            telemetry.DEAD_LETTERS.labels(STREAM).inc()
            try:
                await runtime.dead_letter(
                    self._bus.js, stream=STREAM, consumer="monitor", subject=message.subject,
                    sequence=message.sequence, payload=message.data, reason=reason,
                )  # fmt: skip
            except (NatsError, TimeoutError, OSError) as exc:
                log.error("dead_letter_failed", sequence=message.sequence, error=repr(exc))
        return None


async def position_before(bus: Bus, time_ms: int) -> int:
    """The last sequence of WINDOWS before a broker time; the end of the stream when nothing is younger."""
    info = await bus.js.stream_info(STREAM)
    last = int(info.state.last_seq)
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_TIME,
        opt_start_time=datetime.fromtimestamp(time_ms / 1000, UTC),
        ack_policy=AckPolicy.NONE,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=5.0,
    )
    consumer: Any = await bus.js.add_consumer(STREAM, config)
    if not consumer.num_pending:
        await bus.js.delete_consumer(STREAM, consumer.name)
        return last
    sub = await bus.js.pull_subscribe_bind(consumer.name, stream=STREAM)
    try:
        first = (await sub.fetch(1, timeout=2))[0]
        return int(first.metadata.sequence.stream) - 1
    finally:
        await sub.unsubscribe()
        await bus.js.delete_consumer(STREAM, consumer.name)
