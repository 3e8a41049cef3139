"""How a finished request is judged. The order of the rules is the order of blame."""

from collections.abc import Iterable

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


def of_choice(
    text: str, thoughts: str, *, cut: bool, calls_valid: bool | None, call_due: bool, excused: bool,
    json_valid: bool,
) -> Outcome:  # fmt: skip
    """The outcome of one choice that came to its end.

    ``cut``: the engine stopped at the length limit; ``calls_valid`` None: it called no tool; ``call_due``: it should
    have; ``excused``: it refused, or answered in another form than text. A cut answer is ``length`` even when its JSON
    is therefore incomplete; one that was cut because it turned in circles is ``repetition``.
    """
    if is_repetition(text) or is_repetition(thoughts):
        return Outcome.REPETITION
    if cut:
        return Outcome.LENGTH
    if calls_valid is not None:
        return Outcome.OK if calls_valid else Outcome.INVALID_TOOL_CALL
    if call_due and not excused:
        return Outcome.INVALID_TOOL_CALL
    if not excused and not text.strip():
        return Outcome.EMPTY
    return Outcome.OK if json_valid or excused else Outcome.INVALID_JSON


_BLAME = (
    Outcome.REPETITION, Outcome.LENGTH, Outcome.INVALID_TOOL_CALL, Outcome.EMPTY, Outcome.INVALID_JSON, Outcome.OK,
)  # fmt: skip


def worst(choices: Iterable[Outcome]) -> Outcome:
    """The outcome of a reply of several choices: that of the worst one; without any, it is empty."""
    return min(choices, key=_BLAME.index, default=Outcome.EMPTY)


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
