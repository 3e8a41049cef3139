"""When to ask again, and when to give up; pure but for the clock that it is given."""

import random
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cypria._operation import Request
from cypria.errors import (
    ApiError,
    ConnectionFailed,
    CypriaError,
    NoAnswerInTime,
    NotFound,
    NoVerdictYet,
    RateLimited,
    ServerUnavailable,
    UnexpectedAnswer,
)
from cypria.types import Status, Test, Verdict

_PASSING = frozenset({502, 503, 504})
_LASTING = (ssl.SSLError, socket.gaierror, UnicodeError)
"""Errors before a connection that no waiting mends."""
UNSEEN_S = 5.0
"""Patience with an edge that has not answered once: its address may be wrong."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long one call is tried again: ``attempts`` in all, ``first_s`` before the second, twice that
    before each further one, or as `Retry-After` says; a longer wait than ``longest_s`` is the caller's to decide.

    Only what is safe is repeated: questions; and commands that were surely not carried out, since no connection came
    about or the edge said to ask again later.
    """

    attempts: int = 4
    first_s: float = 0.2
    longest_s: float = 30.0

    def pause(self, done: int, request: Request[Any], exc: CypriaError) -> float | None:
        """Seconds to wait after the failure of try ``done`` (1 the first); None: not again."""
        if done >= self.attempts:
            return None
        told = exc.retry_after if isinstance(exc, ApiError) else 0.0
        if not _again(request, exc, told) or told > self.longest_s:
            return None
        backoff = self.first_s * float(2 ** (done - 1)) * random.uniform(0.75, 1.25)  # noqa: S311 - spread, no secret
        return told or min(self.longest_s, backoff)


def _again(request: Request[Any], exc: CypriaError, told: float) -> bool:
    if isinstance(exc, ConnectionFailed):
        if isinstance(exc, NoAnswerInTime) or isinstance(exc.__cause__, _LASTING):
            return False
        return request.repeatable or not exc.sent
    if isinstance(exc, RateLimited):
        return request.refusable
    if isinstance(exc, ServerUnavailable) and exc.status == 503 and told:
        return request.refusable
    return isinstance(exc, (ServerUnavailable, UnexpectedAnswer)) and exc.status in _PASSING and request.repeatable


class Outage:
    """How long an edge has been away that is asked again and again. ``patience`` and all times in seconds."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._since: float | None = None
        self._seen = False

    @property
    def noticed(self) -> bool:
        """Whether it has been there before and is away."""
        return self._seen and self._since is not None

    def over(self) -> None:
        """It answers."""
        self._seen, self._since = True, None

    def of(self, exc: CypriaError | None) -> float:
        """Seconds to wait after ``exc``, or after a stream that ended; raises ``exc`` when there is no more patience,
        and whatever time does not mend.
        """
        if exc is not None and not _passes(exc):
            raise exc
        now = self._clock()
        self._since = now if self._since is None else self._since
        away = now - self._since
        if exc is not None and away >= (self._patience if self._seen else min(self._patience, UNSEEN_S)):
            raise exc
        told = exc.retry_after if isinstance(exc, ApiError) else 0.0
        return told or min(5.0, max(0.2, away / 4))


def _passes(exc: CypriaError) -> bool:
    if isinstance(exc, ConnectionFailed):
        return not isinstance(exc.__cause__, (ssl.SSLCertVerificationError, UnicodeError))
    if isinstance(exc, UnexpectedAnswer):
        return exc.status in _PASSING
    return isinstance(exc, (ServerUnavailable, RateLimited))


class Watch:
    """Follows one test to its end. Times in seconds; ``timeout`` None: for as long as it takes."""

    def __init__(
        self, test_id: str, timeout: float | None, poll: float, outage: Outage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.test_id = test_id
        self._timeout = timeout
        self._poll = poll
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._outage = outage
        self.last: Status | None = None
        self._told: tuple[Any, ...] | None = None

    def seen(self, status: Status) -> bool:
        """Whether anything changed that is worth a word. Raises NotFound for no test."""
        self._outage.over()
        if status.test_id != self.test_id:
            raise NotFound(404, f"there is no test '{self.test_id}': `history` lists ended ones")
        self.last = status
        changed, self._told = status.changes() != self._told, status.changes()
        return changed

    def pause(self, exc: CypriaError | None = None) -> float:
        """Seconds until the next look, after ``exc`` if the last one failed. Raises NoVerdictYet, or ``exc``."""
        wait = self._poll if exc is None else max(self._outage.of(exc), min(self._poll, 1.0))
        if self._end is None:
            return wait
        left = self._end - self._clock()
        if left <= 0:
            raise NoVerdictYet(
                f"no verdict on {self.test_id} within {self._timeout:g} s: it goes on; wait for it again, or stop it",
                self.test_id, self.last,
            )  # fmt: skip
        return min(wait, left)

    @staticmethod
    def verdict(test: Test) -> Verdict:
        """What came of it."""
        return Verdict(test)
