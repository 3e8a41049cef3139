"""Answers of the router's own, in the one shape of every error."""

import msgspec

from services.router.domain.call import Reply
from services.router.domain.refusals import BadRequest, Refused, Unavailable, UpstreamTimeout, error_body

_encode = msgspec.json.Encoder().encode
RETRY_AFTER_S = 5


def refusal(exc: Refused) -> Reply:
    """The answer to a refused request."""
    return Reply(exc.status, _encode(exc.body()), retry_after=exc.retry_after_s or 0)


def no_worker(model: str, state: str) -> Reply:
    """Nobody serves a known model now; ``state`` as its workers say it."""
    # Ready is also the one whose engine hangs.
    how = "none of those that are ready answers" if state == "ready" else f"it is {state}"
    message = f"no worker serves the model '{model}' now, {how}: try again later"
    return refusal(Unavailable(message, param="model", code="no_worker", retry_after_s=RETRY_AFTER_S))


def unloaded(model: str, why: str) -> Reply:
    """Somebody has unloaded the model on purpose: waiting brings nothing."""
    message = f"the model '{model}' is not loaded: {why}"
    return refusal(Unavailable(message, param="model", code="model_unloaded", retry_after_s=RETRY_AFTER_S))


def bus_away() -> Reply:
    """The bus did not come back in time."""
    message = "the message bus is away: try again later"
    return refusal(Unavailable(message, code="bus_unavailable", retry_after_s=RETRY_AFTER_S))


def lost_worker(model: str) -> Reply:
    """Worker after worker fell silent with the request."""
    message = f"the workers of the model '{model}' fell silent: try again later"
    return refusal(Unavailable(message, param="model", code="worker_lost", retry_after_s=RETRY_AFTER_S))


def too_slow(model: str, seconds: float) -> Reply:
    """The first byte did not come in time."""
    return refusal(
        UpstreamTimeout(f"the model '{model}' did not answer within {seconds:g} s: try again, or ask for less")
    )


def hung_up() -> Reply:
    """The client closed its side while it waited; it may still be able to read."""
    return refusal(
        BadRequest(
            "the connection was closed before the answer: keep it open until you have it", code="client_closed_request"
        )
    )


def broken() -> Reply:
    """Something went wrong inside the router."""
    return Reply(
        500, _encode(error_body("something went wrong inside: try again", "server_error", None, "internal_error"))
    )


def event(message: str, code: str, *, lines: bool = False) -> bytes:
    """What ends a stream that cannot go on: a server-sent event, or with ``lines`` a line of JSON."""
    body = _encode(error_body(message, "server_error", None, code))
    return body + b"\n" if lines else b"data: " + body + b"\n\n"
