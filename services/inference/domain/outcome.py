"""How a finished request is judged. The order of the rules is the order of blame."""

from schemas.v1.common import Outcome

_CALLER = frozenset({400, 413, 422})
_REJECTED = frozenset({429, 503})
_TIMEOUT = frozenset({408, 504})

_TAIL = 512
_PROBE = 32
_MIN_REPEATS = 4


def of_status(status: int) -> Outcome:
    """The outcome of an engine's answer other than 2xx, whose first token never came."""
    if status in _CALLER:
        return Outcome.CLIENT_ERROR
    if status in _REJECTED:
        return Outcome.REJECTED
    if status in _TIMEOUT:
        return Outcome.TIMEOUT
    return Outcome.ERROR_BEFORE_FIRST_TOKEN


def broken_off(*, content: bool) -> Outcome:
    """The outcome of an answer that an engine's failure ended; ``content``: a token had come before it."""
    return Outcome.ERROR_MID_STREAM if content else Outcome.ERROR_BEFORE_FIRST_TOKEN


def of_content(
    texts: list[str], *, cut: bool, tools_called: bool, tools_valid: bool, json_asked: bool, json_valid: bool
) -> Outcome:
    """The outcome of an answer that came to its end; ``cut``: the engine stopped at the length limit.

    A cut answer is ``length`` even when its JSON is therefore incomplete; one that was cut because it
    turned in circles is ``repetition``.
    """
    if any(is_repetition(text) for text in texts):
        return Outcome.REPETITION
    if cut:
        return Outcome.LENGTH
    if tools_called:
        return Outcome.OK if tools_valid else Outcome.INVALID_TOOL_CALL
    if not any(texts):
        return Outcome.EMPTY
    if json_asked and not json_valid:
        return Outcome.INVALID_JSON
    return Outcome.OK


def is_repetition(text: str) -> bool:
    """Whether the last 512 characters are one passage of at most 128 characters, over and over.

    The nearest earlier copy of the last 32 characters gives the only period that can hold, so this is a
    substring search and one comparison however long the text is.
    """
    if len(text) < _TAIL:
        return False
    tail = text[-_TAIL:]
    at = tail.rfind(tail[-_PROBE:], 0, _TAIL - 1)
    period = _TAIL - _PROBE - at
    return at >= 0 and period * _MIN_REPEATS <= _TAIL and tail[period:] == tail[:-period]
