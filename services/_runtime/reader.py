"""Reading a stream from a position that lives with the result: the way that loses and repeats nothing.

An ephemeral pull consumer without acks starts at position + 1; its own sequence must rise by exactly one
with every message, else it is made again from the position. Nothing is ever acknowledged.

A message without content ends the server's answers to one request, so what came behind it in the same request is lost
and has to be asked for again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo

from services._runtime.bus import Bus
from services._runtime.clock import monotonic
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

INACTIVE_S = 30.0
LIFE = "cypria_created"
"""In the metadata of a stream: when it began (`provision` writes it). A server that restores a backup restores that,
too, but says of the stream that it was created just then."""
_CHECK_AFTER_S = 2.0


def _raise_if_cancelled() -> None:
    """A cancellation that arrives inside nats-py's fetch may come out as a timeout, or as nothing at all."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """A message with its place in the stream; ``time_ms`` is the broker's clock."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str] | None
    time_ms: int


def life_of(info: StreamInfo) -> str:
    """When the stream began (RFC 3339), by which a position knows its own from another one of the same name."""
    return str((info.config.metadata or {}).get(LIFE) or info.created)


class PositionError(RuntimeError):
    """The stream does not hold what the position says; the message says how and what to do."""


class SequenceReader:
    """Messages of a stream (optionally of one subject filter) after a position, in order, each once.

    ``position`` is the last sequence returned. ``stream_created`` is when the stream began (`life_of`): a
    position is only good for the stream it was taken from.
    """

    def __init__(self, bus: Bus, stream: str, filter_subject: str | None = None, after: int = 0) -> None:
        self._bus = bus
        self._stream = stream
        self._filter = filter_subject
        self._sub: Any = None
        self._expected = 1
        self._generation = -1
        self._last_progress = 0.0
        self.position = after
        self.stream_created = ""
        self.first_sequence = 0
        self.last_sequence = 0
        self.gaps = 0

    async def open(self, expect_created: str | None = None) -> None:
        """Learn the stream's state and check the position against it.

        Raises PositionError when the stream is another one than ``expect_created`` with a position above its
        end. A first sequence above position + 1 means that messages aged out unread: counted in ``gaps``.
        """
        info = await self._bus.js.stream_info(self._stream)
        self.stream_created = life_of(info)
        self.first_sequence, self.last_sequence = int(info.state.first_seq), int(info.state.last_seq)
        if expect_created and expect_created != self.stream_created:
            log.warning("stream_recreated", stream=self._stream, was=expect_created, now=self.stream_created)
            self.position = 0
        if self.last_sequence < self.position:
            raise PositionError(
                f"stream {self._stream} ends at {self.last_sequence} but the position is {self.position}: the stream "
                "has lost messages or is another one; restore it, or remove the derived data to start over"
            )
        if self._filter is None and self.first_sequence > self.position + 1 and self.position > 0:
            self.gaps += self.first_sequence - self.position - 1
            log.error("messages_aged_out_unread", stream=self._stream, count=self.gaps)

    async def fetch(self, batch: int = 256, timeout_s: float = 1.0) -> list[StreamMessage]:
        """Up to ``batch`` next messages; empty when none came in ``timeout_s`` or the server is away."""
        try:
            if self._sub is None or self._generation != self._bus.generation:
                await self._subscribe()
            messages = await self._sub.fetch(batch, timeout=timeout_s)
        except (NatsError, TimeoutError, OSError) as exc:
            _raise_if_cancelled()
            await self._after_nothing(exc, timeout_s)
            return []
        _raise_if_cancelled()
        return await self._in_order(messages)

    async def catch_up(self) -> AsyncIterator[StreamMessage]:
        """Messages up to the stream's present end, then stop."""
        info = await self._bus.js.stream_info(self._stream)
        end = int(info.state.last_seq)
        while self.position < end:
            messages = await self.fetch(1024, 0.5)
            if not messages and self._filter is not None and await self.nothing_left():
                return
            for message in messages:
                yield message

    async def close(self) -> None:
        """Drop the consumer."""
        sub, self._sub = self._sub, None
        if sub is not None and self._bus.connected:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                info = await sub.consumer_info()
                await sub.unsubscribe()
                await self._bus.js.delete_consumer(self._stream, info.name)

    async def _subscribe(self) -> None:
        if self._sub is not None:
            with contextlib.suppress(NatsError, OSError):
                await self._sub.unsubscribe()
            self._sub = None
        generation = self._bus.generation
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.position + 1,
            ack_policy=AckPolicy.NONE,
            filter_subject=self._filter,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=INACTIVE_S,
        )
        info = await self._bus.js.add_consumer(self._stream, config)
        self._sub = await self._bus.js.pull_subscribe_bind(info.name, stream=self._stream)
        self._expected = 1
        self._generation = generation
        self._last_progress = monotonic()

    async def _in_order(self, messages: list[Any]) -> list[StreamMessage]:
        result = []
        for message in messages:
            meta = message.metadata
            if meta.sequence.consumer != self._expected:
                log.warning("consumer_gap", stream=self._stream, expected=self._expected, got=meta.sequence.consumer)
                self._generation = -1
                break
            self._expected += 1
            self.position = int(meta.sequence.stream)
            time_ms = int(meta.timestamp.timestamp() * 1000)
            result.append(StreamMessage(self.position, message.subject, message.data, message.headers, time_ms))
            if not message.data:
                self._generation = -1
                break
        if result:
            self._last_progress = monotonic()
        return result

    async def _after_nothing(self, exc: BaseException, timeout_s: float) -> None:
        """A fetch that times out is normal; one on a consumer that the server forgot looks the same."""
        if not isinstance(exc, TimeoutError):
            log.warning("fetch_failed", stream=self._stream, error=repr(exc))
            self._generation = -1
            await asyncio.sleep(min(0.1, timeout_s))
        elif self._sub is not None and monotonic() - self._last_progress > _CHECK_AFTER_S:
            self._last_progress = monotonic()
            try:
                delivered = (await self._sub.consumer_info()).delivered
            except (NatsError, TimeoutError, OSError):
                self._generation = -1
            else:
                if delivered is not None and delivered.consumer_seq >= self._expected:
                    self._generation = -1  # it was sent and never came

    async def nothing_left(self) -> bool:
        """Whether the server holds nothing after the position; False when it cannot be asked.

        A new consumer is asked: to the old one, what is on its way to a fetch that has timed out is delivered.
        """
        try:
            await self._subscribe()
            info = await self._sub.consumer_info()
        except (NatsError, TimeoutError, OSError):
            _raise_if_cancelled()
            self._generation = -1
            return False
        return int(info.num_pending or 0) == 0
