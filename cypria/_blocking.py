"""The client for scripts and pipelines: every call waits for its answer."""

import time
from collections.abc import Callable, Generator
from http.client import HTTPException
from typing import Literal, Self, TypeVar, overload

from cypria._core import SILENCE_S, Core, Pages, Stream
from cypria._http import NotSentError, decoded, exchange, lines
from cypria._operation import Request
from cypria._patience import Outage, Watch
from cypria.errors import CypriaError
from cypria.types import Event, Evidence, Report, Status, Test, Verdict

T = TypeVar("T")


class Client(Core):
    """The control API of one edge.

    ``url`` (`CYPRIA_URL`, default http://127.0.0.1:2242), ``api_key`` (`CYPRIA_API_KEY`, or the file that
    `CYPRIA_API_KEY_FILE` names), ``ca_file``, ``cert_file`` and ``key_file`` (`CYPRIA_CA_FILE`, `CYPRIA_CERT_FILE`,
    `CYPRIA_KEY_FILE`; PEM) or an ``ssl_context`` of one's own; ``timeout`` of one call in seconds; ``retry`` as `Retry`
    says. Raises SettingsError for what cannot be used. May be shared by threads; holds no connection.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held between calls; here so that both clients can be used alike."""

    def running(self) -> list[Status]:
        """The tests that run now, none or several."""
        first = self.status()
        others = [one for one in first.running_tests if one != first.test_id]
        return [first, *(self.status(one) for one in others)] if first.test_id and not first.ended else []

    def history(self, limit: int | None = None) -> Generator[Test, None, None]:
        """Ended tests, newest first, ``limit`` of them or all."""
        pages = Pages(limit)
        while not pages.full:
            page = self.history_page(limit=pages.SIZE, offset=pages.offset)
            yield from pages.take(page.tests)
            if pages.offset >= page.total_tests:
                return

    @overload
    def report(self, test_id: str) -> Report: ...
    @overload
    def report(self, test_id: str, format: Literal["json"]) -> Report: ...
    @overload
    def report(self, test_id: str, format: Literal["markdown", "html"]) -> str: ...
    def report(self, test_id: str, format: Literal["json", "markdown", "html"] = "json") -> Report | str:  # noqa: A002
        """The decision report: its data, or as Markdown or one HTML file."""
        if format == "json":
            return self._report(test_id)
        return self._report_html(test_id) if format == "html" else self._report_markdown(test_id)

    def evidence(self, test_id: str, *, after: int = 0) -> Generator[Evidence, None, None]:
        """All evidence behind a verdict, page by page; of a running test as far as it goes."""
        while True:
            page = self.evidence_page(test_id, after=after)
            yield page
            if page.complete or page.last <= after:
                return
            after = page.last

    def follow(
        self, test_id: str, timeout: float | None = None, *, poll: float = 2.0, patience: float = 300.0
    ) -> Generator[Status, None, None]:
        """A test's status every ``poll`` seconds, until and with the one in which it has ended.

        An edge that is away (restarted, say) is waited for, for ``patience`` seconds. Raises NoVerdictYet after
        ``timeout`` seconds.
        """
        yield from (status for status, _ in self._watched(Watch(test_id, timeout, poll, Outage(patience))))

    def wait_for_verdict(
        self, test_id: str, timeout: float | None = None, on_progress: Callable[[Status], object] | None = None, *,
        poll: float = 2.0, patience: float = 300.0,
    ) -> Verdict:  # fmt: skip
        """Wait until a test has ended, and tell what came of it; ``on_progress`` is called with each change.

        Raises as `follow` does: NoVerdictYet after ``timeout`` seconds (the test goes on).
        """
        watch = Watch(test_id, timeout, poll, Outage(patience))
        for status, changed in self._watched(watch):
            if changed and on_progress:
                on_progress(status)
        return watch.verdict(self._patiently(watch, type(self).test.request(test_id)))

    def _watched(self, watch: Watch) -> Generator[tuple[Status, bool], None, None]:
        """Each status, and whether it is worth a word."""
        while True:
            status = self._patiently(watch, type(self).status.request(watch.test_id))
            changed = watch.seen(status)
            yield status, changed
            if status.ended:
                return
            time.sleep(watch.pause())

    def _patiently(self, watch: Watch, request: Request[T]) -> T:
        while True:
            try:
                return self._once(request)
            except CypriaError as exc:
                wait = watch.pause(exc)
            time.sleep(wait)

    def events(self, *, live: bool = False, patience: float = 300.0) -> Generator[Event, None, None]:
        """What happens, live. A line that is down is taken up again, for ``patience`` seconds, and then an event
        ``reconnected`` says that what happened meanwhile was not told. With ``live``, how every running test stands
        comes about once a second (``live``), and windows do not.
        """
        query, outage = self._events(live=live), Outage(patience)
        while True:
            failed: CypriaError | None = None
            try:
                with lines(query, SILENCE_S, self._settings.context) as (refused, told):
                    if refused is not None:
                        decoded(query, refused)
                    if outage.noticed:
                        yield Event("reconnected")
                    outage.over()
                    stream = Stream()
                    yield from filter(None, map(stream.feed, told))
            except NotSentError as exc:
                failed = self._lost(exc.__cause__, query, sent=False)
            except (OSError, HTTPException) as exc:
                failed = self._lost(exc, query, sent=True)
            except CypriaError as exc:
                failed = exc
            time.sleep(outage.of(failed))

    def _send(self, request: Request[T]) -> T:
        done = 0
        while True:
            done += 1
            try:
                return self._once(request)
            except CypriaError as exc:
                wait = self._retry.pause(done, request, exc)
                if wait is None:
                    raise
            time.sleep(wait)

    def _once(self, request: Request[T]) -> T:
        query = self._query(request)
        try:
            answer = exchange(query, self._timeout, self._settings.context)
        except NotSentError as exc:
            raise self._lost(exc.__cause__, query, sent=False) from exc.__cause__
        except (OSError, HTTPException) as exc:
            raise self._lost(exc, query, sent=True) from exc
        return self._result(request, query, answer)
