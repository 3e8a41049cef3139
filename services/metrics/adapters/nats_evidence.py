"""Windows of one test as they are stored, for a replay."""

from pydantic import ValidationError

from schemas import streams, subjects
from schemas.v1.query import StoredWindow, WindowsQuery, WindowsReply
from schemas.v1.windows import Window
from services._runtime.bus import Bus
from services._runtime.reader import SequenceReader
from services._runtime.telemetry import get_logger
from services.metrics.adapters.nats_positions import sequence_before

log = get_logger(__name__)

_MARGIN_MS = 2_000


class Evidence:
    """Reads WINDOWS by page."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def page(self, question: WindowsQuery, started_ms: int) -> WindowsReply:
        """One page: at most ``limit`` windows and half of what one message may carry. Raises NatsError."""
        room = self._bus.nc.max_payload // 2
        after = question.after or await sequence_before(
            self._bus.js, streams.WINDOWS.name, subjects.WINDOW, started_ms - _MARGIN_MS
        )
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
                    reply.last = message.sequence
                    try:
                        stored = _only(question.test_id, message.sequence, message.time_ms, message.data)
                    except ValidationError:
                        continue  # the feeder says so
                    room -= len(message.data) if stored.window.cells else 200
                    reply.windows.append(stored)
                    if room <= 0:
                        break
        finally:
            await reader.close()
        return reply


def _only(test_id: str, sequence: int, time_ms: int, data: bytes) -> StoredWindow:
    window = Window.model_validate_json(data)
    window.cells = [cell for cell in window.cells if cell.test == test_id]
    window.new_units = []
    return StoredWindow(sequence=sequence, at_ms=time_ms, window=window)
