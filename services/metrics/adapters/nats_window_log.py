"""The stored windows of one partition: the last one, and appending the next behind a fence."""

import asyncio
from dataclasses import dataclass

from nats.js.api import Header
from nats.js.errors import APIError, NotFoundError

from schemas import streams, subjects
from services._runtime.bus import TRANSIENT, WRONG_LAST_SEQUENCE, Bus
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_RETRY_S = 0.1


class SupersededError(Exception):
    """Another writer has appended to this partition; this one must stand by."""


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """A stored window and its WINDOWS sequence."""

    sequence: int
    data: bytes


class WindowLog:
    """`cypria.window.<p>`, on which only one writer can append at a time.

    Every publish names the sequence that the subject's last message must have, so a second writer's fails.
    """

    def __init__(self, bus: Bus, partition: int) -> None:
        self._bus = bus
        self.subject = subjects.window(partition)

    async def last(self) -> StoredWindow | None:
        """The last stored window, as the stream's leader has it; None when there is none. Raises NatsError."""
        try:
            message = await self._bus.js.get_msg(streams.WINDOWS.name, subject=self.subject)
        except NotFoundError:
            return None
        return StoredWindow(int(message.seq or 0), bytes(message.data or b""))

    async def append(self, data: bytes, after: int) -> int:
        """Store a window behind the one at sequence ``after`` (0: none yet); returns its sequence.

        Waits for as long as the server is away. A publish whose answer was lost is settled by reading the last
        message back: it is this window (done), the one before (send again) or another writer's (SupersededError).
        """
        headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after)}
        while True:
            try:
                ack = await self._bus.js.publish(self.subject, data, timeout=2, headers=headers)
            except APIError as exc:
                if exc.err_code != WRONG_LAST_SEQUENCE:
                    log.warning("window_not_stored", subject=self.subject, error=repr(exc))
                    await asyncio.sleep(_RETRY_S)
            except TRANSIENT as exc:
                log.warning("window_unconfirmed", subject=self.subject, error=repr(exc))
                await asyncio.sleep(_RETRY_S)
            else:
                return int(ack.seq)
            last = await self._read_back()
            if last is not None and last.sequence > after:
                if last.data == data:
                    return last.sequence
                raise SupersededError(f"{self.subject}: another writer stored sequence {last.sequence}")
            if (last.sequence if last else 0) < after:
                raise SupersededError(
                    f"{self.subject}: the window at sequence {after} is gone, the stream was replaced"
                )

    async def _read_back(self) -> StoredWindow | None:
        while True:
            try:
                return await self.last()
            except TRANSIENT as exc:
                log.debug("read_back_failed", subject=self.subject, error=repr(exc))
                await asyncio.sleep(_RETRY_S)
