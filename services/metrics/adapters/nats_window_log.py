"""The stored windows of one partition: the last one, and appending the next behind a fence."""

import asyncio
from dataclasses import dataclass

from nats.js.api import Header
from nats.js.errors import APIError, NotFoundError

from schemas import streams, subjects
from services._runtime.bus import TRANSIENT, WRONG_LAST_SEQUENCE, Bus
from services._runtime.clock import monotonic
from services._runtime.reader import SequenceReader
from services._runtime.telemetry import get_logger
from services.metrics.adapters import wire

log = get_logger(__name__)

_RETRY_S = 0.1
_SAY_S = 10.0
"""How often at most it is said that windows are not taken: each of the partitions tries ten times a second."""

_FENCE = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value
_LOOK_BACK = 1000
"""Messages of WINDOWS to look back over first for a window; ten times as many each time that there is none."""


class SupersededError(Exception):
    """Another writer has appended to this partition; this one must stand by."""


class ForeignError(Exception):
    """Something that no writer has stored came behind the last window; the position is to be read anew."""


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """A stored message of the partition and its WINDOWS sequence.

    ``fenced`` says that it was published behind a fence, as every window of every writer is.
    """

    sequence: int
    data: bytes
    fenced: bool = True

    @property
    def foreign(self) -> bool:
        """Whether no writer has stored it: it is no window and did not come behind the fence."""
        if self.fenced:
            return False
        try:
            wire.decode_window(self.data)
        except wire.BadMessageError:
            return True
        return False


class WindowLog:
    """`cypria.window.<p>`, on which only one writer can append at a time.

    Every publish names the sequence that the subject's last message must have, so a second writer's fails.
    """

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus = bus
        self.subject = subjects.window(partition)
        self._said_at = float("-inf")

    async def last(self) -> StoredWindow | None:
        """The last stored window, as the stream's leader has it; None when there is none. Raises NatsError."""
        try:
            message = await self._bus.js.get_msg(streams.WINDOWS.name, subject=self.subject)
        except NotFoundError:
            return None
        return StoredWindow(int(message.seq or 0), bytes(message.data or b""), _FENCE in (message.headers or {}))

    async def before(self, sequence: int) -> StoredWindow | None:
        """The last message before a sequence that a writer has stored; None when there is none. Raises NatsError."""
        span = _LOOK_BACK
        while True:
            start = max(0, sequence - 1 - span)
            found: StoredWindow | None = None
            reader = SequenceReader(self._bus, streams.WINDOWS.name, self.subject, after=start)
            try:
                async for message in reader.catch_up():
                    if message.sequence >= sequence:
                        break
                    stored = StoredWindow(message.sequence, message.data, _FENCE in (message.headers or {}))
                    found = found if stored.foreign else stored
            finally:
                await reader.close()
            if found is not None or start == 0:
                return found
            span *= 10

    async def append(self, data: bytes, after: int) -> int:
        """Store a window behind the one at sequence ``after`` (0: none yet); returns its sequence.

        Waits for as long as the server is away. A publish whose answer was lost is settled by reading the last
        message back: it is this window (done), the one before (send again), another writer's (SupersededError) or
        nobody's (ForeignError).
        """
        headers = {_FENCE: str(after)}
        while True:
            try:
                ack = await self._bus.js.publish(self.subject, data, timeout=2, headers=headers)
            except APIError as exc:
                if exc.err_code != WRONG_LAST_SEQUENCE:
                    self._say("window_not_stored", exc)
                    await asyncio.sleep(_RETRY_S)
            except TRANSIENT as exc:
                self._say("window_unconfirmed", exc)
                await asyncio.sleep(_RETRY_S)
            else:
                return int(ack.seq)
            last = await self._read_back()
            if last is not None and last.sequence > after:
                if last.data == data:
                    return last.sequence
                if last.foreign:
                    raise ForeignError(f"{self.subject}: what is stored at sequence {last.sequence} is no window")
                raise SupersededError(f"{self.subject}: another writer stored sequence {last.sequence}")
            if (last.sequence if last else 0) < after:
                raise SupersededError(
                    f"{self.subject}: the window at sequence {after} is gone, the stream was replaced"
                )

    def _say(self, what: str, exc: BaseException) -> None:
        if monotonic() - self._said_at >= _SAY_S:
            self._said_at = monotonic()
            log.warning(what, subject=self.subject, error=repr(exc))

    async def _read_back(self) -> StoredWindow | None:
        while True:
            try:
                return await self.last()
            except TRANSIENT as exc:
                log.debug("read_back_failed", subject=self.subject, error=repr(exc))
                await asyncio.sleep(_RETRY_S)
