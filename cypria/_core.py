"""What both clients are made of."""

import os
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from cypria._http import Answer, Query, decoded
from cypria._operation import PREFIX, Request
from cypria._operations import Operations
from cypria._patience import Retry
from cypria._settings import Settings, settings
from cypria._words import HOST, explained
from cypria.errors import ConnectionFailed, NoAnswerInTime
from cypria.types import Event, Test

T = TypeVar("T")
File = str | os.PathLike[str]
EVENTS_PATH = "/events"
SILENCE_S = 45.0
"""The edge says something every 15 s; a stream that is silent for longer is dead."""


class Core(Operations):
    """Settings and the making of requests; the subclasses send them."""

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, ca_file: File | None = None,
        cert_file: File | None = None, key_file: File | None = None, ssl_context: ssl.SSLContext | None = None,
        timeout: float = 30.0, retry: Retry | None = None,
    ) -> None:  # fmt: skip
        self._settings: Settings = settings(url, api_key, ca_file, cert_file, key_file, ssl_context)
        self._timeout = timeout
        self._retry = retry or Retry()

    @property
    def url(self) -> str:
        """The edge's address."""
        return self._settings.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _query(self, request: Request[Any]) -> Query:
        return Query(
            request.method, self.url, request.path, request.params, request.body, request.accept, self._settings.key
        )

    def _events(self, *, live: bool) -> Query:
        params = {"live": True} if live else None
        return Query("GET", self.url, PREFIX + EVENTS_PATH, params, accept="text/event-stream", key=self._settings.key)

    @staticmethod
    def _result(request: Request[T], query: Query, answer: Answer) -> T:
        return request.make(decoded(query, answer))

    def _lost(self, exc: BaseException | None, query: Query, *, sent: bool) -> ConnectionFailed:
        """No answer, in words."""
        doubt = sent and query.method != "GET"
        remedy = "it may have been carried out: look (`status`, `history`) before you repeat it" if doubt else HOST
        if sent and isinstance(exc, TimeoutError):
            what = "ask again, or look at its log" if not doubt else remedy
            lost: ConnectionFailed = NoAnswerInTime(f"no answer from {self.url} within {self._timeout:g} s: {what}")
        else:
            why = explained(exc or OSError(), self.url, shows_certificate=self._settings.shows_certificate)
            lost = ConnectionFailed(f"no answer from {self.url} ({why}): {remedy}", sent=sent)
        lost.__cause__ = exc
        return lost


class Stream:
    """Server-sent events out of lines. One whose data is no JSON object is left out: the edge sends none."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """The event that ends with this line, if one does."""
        line = line.rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and name in self._fields:
                value = f"{self._fields[name]}\n{value}"
            if name in {"event", "id", "data"}:
                self._fields[name] = value
            return None
        found, self._fields = self._fields, {}
        data = _object(found.get("data"))
        return None if data is None else Event(found.get("event", "message"), data, found.get("id"))


def _object(text: str | None) -> dict[str, Any] | None:
    import json

    try:
        data = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class Pages:
    """Goes through the history, which grows at its front meanwhile: what was shown is not shown again."""

    SIZE = 100

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._shown: set[str] = set()
        self.offset = 0

    def take(self, tests: Iterable[Test]) -> Iterator[Test]:
        """Those of a page that are new, as far as they are wanted."""
        for test in tests:
            if test.test_id not in self._shown and not self.full:
                self._shown.add(test.test_id)
                if self._left is not None:
                    self._left -= 1
                yield test
        self.offset += self.SIZE

    @property
    def full(self) -> bool:
        """Whether there are as many as were wanted."""
        return self._left is not None and self._left <= 0
