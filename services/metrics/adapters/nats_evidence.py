"""Windows of one test as they are stored, for a replay."""

from datetime import UTC, datetime

from schemas import streams, subjects
from schemas.v1.query import StoredWindow, WindowsQuery, WindowsReply
from schemas.v1.windows import Window
from services._runtime.bus import Bus
from services._runtime.reader import SequenceReader
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_MARGIN_MS = 2_000


class Evidence:
    """Reads WINDOWS by page."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def page(self, question: WindowsQuery, started_ms: int) -> WindowsReply:
        """One page: at most ``limit`` windows and half of what one message may carry. Raises NatsError."""
        room = self._bus.nc.max_payload // 2
        after = question.after or await self._before(started_ms - _MARGIN_MS)
        reader = SequenceReader(self._bus, streams.WINDOWS.name, after=after)
        reply = WindowsReply(last=after, complete=False)
        try:
            await reader.open()
            while len(reply.windows) < question.limit and room > 0:
                if reader.position >= reader.last_sequence:
                    reply.complete = True
                    break
                messages = await reader.fetch(min(256, question.limit - len(reply.windows)), 1.0)
                if not messages:
                    break
                for message in messages:
                    stored = _only(question.test_id, message.sequence, message.time_ms, message.data)
                    room -= len(message.data) if stored.window.cells else 200
                    reply.windows.append(stored)
                    reply.last = message.sequence
                    if room <= 0:
                        break
        finally:
            await reader.close()
        return reply

    async def _before(self, time_ms: int) -> int:
        """The sequence before the first window stored at or after a time, by bisection."""
        info = await self._bus.js.stream_info(streams.WINDOWS.name)
        low, high = int(info.state.first_seq), int(info.state.last_seq) + 1
        while low < high:
            middle = (low + high) // 2
            message = await self._bus.js.get_msg(streams.WINDOWS.name, seq=middle, subject=subjects.WINDOW, next=True)
            stored = message.time.astimezone(UTC) if message.time else datetime.fromtimestamp(0, UTC)
            if stored.timestamp() * 1000 < time_ms:
                low = middle + 1
            else:
                high = middle
        return low - 1


def _only(test_id: str, sequence: int, time_ms: int, data: bytes) -> StoredWindow:
    window = Window.model_validate_json(data)
    window.cells = [cell for cell in window.cells if cell.test == test_id]
    window.new_units = []
    return StoredWindow(sequence=sequence, at_ms=time_ms, window=window)
