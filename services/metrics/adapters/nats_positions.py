"""Whether a stored position still means what it meant, and which sequence a time stands for."""

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

_ROUNDING_MS = 2
"""Times of one message read in two ways differ by this at most."""


def _time_ms(message: RawStreamMsg) -> int:
    return int(message.time.timestamp() * 1000) if message.time else 0


async def still_holds(js: JetStreamContext, stream: str, sequence: int, time_ms: int) -> bool:
    """Whether the message at a sequence is the one that was there before, known by its broker time.

    After a power cut a stream may have lost its end and given the same sequences to other messages. True also when
    the message has aged out, which is no loss by itself. With 0 for a time that is not known, whether the stream still
    reaches so far. Raises NatsError.
    """
    if not time_ms:
        return bool(sequence <= (await js.stream_info(stream)).state.last_seq)
    try:
        message = await js.get_msg(stream, seq=sequence)
    except NotFoundError:
        return bool(sequence < (await js.stream_info(stream)).state.first_seq)
    return abs(_time_ms(message) - time_ms) <= _ROUNDING_MS


async def sequence_before(js: JetStreamContext, stream: str, subject: str, time_ms: int) -> int:
    """The last sequence stored before a time, by bisection; ``subject`` is a filter that all messages match."""
    info = await js.stream_info(stream)
    low, high = int(info.state.first_seq), int(info.state.last_seq) + 1
    while low < high:
        middle = (low + high) // 2
        if _time_ms(await js.get_msg(stream, seq=middle, subject=subject, next=True)) < time_ms:
            low = middle + 1
        else:
            high = middle
    return low - 1
