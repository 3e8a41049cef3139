"""What a worker's answer means for the variant that gave it."""

from schemas.v1.common import Outcome

CALLERS_OWN = frozenset({400, 413, 422})
_REJECTED = frozenset({429, 503})
_TIMEOUT = frozenset({408, 504})


def of_status(status: int, said: str) -> Outcome:
    """The outcome of a complete answer: the status decides about failure, the worker about the rest.

    ``said`` is the worker's own word (a value of Outcome); unknown words of a newer worker read as ok.
    """
    if status in CALLERS_OWN:
        return Outcome.CLIENT_ERROR
    if 200 <= status < 300:
        return _OUTCOMES.get(said, Outcome.OK)
    if status in _REJECTED:
        return Outcome.REJECTED
    if status in _TIMEOUT:
        return Outcome.TIMEOUT
    return Outcome.ERROR_BEFORE_FIRST_TOKEN


def of_stream_end(said: str, *, content: bool) -> Outcome:
    """The outcome of a stream that its worker ended; a worker that calls a started stream rejected cut it off."""
    outcome = _OUTCOMES.get(said, Outcome.OK)
    return broken_off(content=content) if outcome is Outcome.REJECTED and content else outcome


def broken_off(*, content: bool) -> Outcome:
    """The outcome of an answer that stopped without an end; ``content``: some of it had reached the client."""
    return Outcome.ERROR_MID_STREAM if content else Outcome.ERROR_BEFORE_FIRST_TOKEN


_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
