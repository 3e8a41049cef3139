"""One inference request while the router has it."""

from collections.abc import Callable, Mapping
from typing import Any

from schemas.v1.common import Outcome
from schemas.v1.inference import Final


class Call:
    """What is known of a request. Times are monotonic seconds.

    ``test`` is the id of the test it is assigned to, "" for none; ``target`` the model that serves it;
    ``shown_id`` is ``id`` where figures and spans may name it, "" where the caller chose it, which may say who it is;
    ``span`` is its trace's, None where it is not sampled; ``units`` the possible units of assignment by source;
    ``gone`` says that its client has left.
    """

    __slots__ = (
        "body", "caller", "first_byte", "gone", "hold_until", "id", "limit_s", "model", "overdue", "probe",
        "route", "share_bp", "shown_id", "span", "started", "sticky", "stream", "target", "test", "token",
        "traceparent", "unit", "units", "variant", "wake",
    )  # fmt: skip

    def __init__(
        self, *, request_id: str, route: str, body: bytes, model: str, stream: bool, caller: str,
        units: Mapping[str, bytes], started: float, own_id: bool = False,
        traceparent: str = "",
    ) -> None:  # fmt: skip
        self.id = request_id
        self.shown_id = "" if own_id else request_id
        self.traceparent = traceparent
        self.span: Any = None
        self.route = route
        self.body = body
        self.model = model
        self.stream = stream
        self.caller = caller
        self.units = units
        self.started = started
        self.target = model
        self.test = ""
        self.variant = ""
        self.share_bp = 0
        self.unit = 0
        self.sticky = False
        self.probe = False
        self.overdue = False
        self.limit_s = 0.0
        self.token = ""
        self.hold_until = 0.0
        self.gone = False
        self.first_byte = False
        self.wake: Callable[[], None] | None = None

    def leave(self) -> None:
        """The client has hung up."""
        self.gone = True
        if self.wake is not None:
            self.wake()


class Reply:
    """A whole answer that has not been sent yet: an engine's error, or one of our own."""

    __slots__ = ("body", "content_type", "retry_after", "status")

    def __init__(self, status: int, body: bytes, content_type: str = "application/json", retry_after: int = 0) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.retry_after = retry_after


class Ended:
    """How serving a request by one model came out.

    ``reply`` is the answer still to be sent; None when one is on its way or sent, or nobody waits for it.
    ``retry``: another worker may be tried, nothing of an answer has left. ``reset``: its own worker said so;
    ``lost``: the worker took the request and fell silent.
    """

    __slots__ = ("digest", "final", "lost", "outcome", "reply", "reset", "retry", "status")

    def __init__(
        self, outcome: Outcome, *, status: int, reply: Reply | None = None, final: Final | None = None,
        digest: str = "", retry: bool = False, reset: bool = False,
    ) -> None:  # fmt: skip
        self.outcome = outcome
        self.status = status
        self.reply = reply
        self.final = final
        self.digest = final.digest if final is not None and final.digest else digest
        self.retry = retry
        self.reset = reset
        self.lost = False
