"""The client for programs that do other things meanwhile: every call is awaited. By aiohttp."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Literal, Self, TypeVar, overload

from cypria._core import SILENCE_S, Core, Pages, Stream
from cypria._http import NotSentError, aexchange, alines, decoded, session
from cypria._operation import Request
from cypria._patience import Outage, Watch
from cypria.errors import CypriaError
from cypria.types import Event, Evidence, Report, Status, Test, Verdict

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")


class AsyncClient(Core):
    """Like `Client`, with the same arguments and the same methods, which are awaited or iterated with ``async for``.

    For one event loop; to be closed: ``async with AsyncClient() as client``, or `aclose`.
    """

    _session: "aiohttp.ClientSession | None" = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what is open; the next call opens it again."""
        opened, self._session = self._session, None
        if opened is not None:
            await opened.close()

    def _opened(self) -> "aiohttp.ClientSession":
        if self._session is None:
            self._session = session(self._timeout)
        return self._session

    async def running(self) -> list[Status]:
        """The tests that run now, none or several."""
        first = await self.status()
        others = [one for one in first.running_tests if one != first.test_id]
        return [first, *[await self.status(one) for one in others]] if first.test_id and not first.ended else []

    async def history(self, limit: int | None = None) -> AsyncGenerator[Test, None]:
        """Ended tests, newest first, ``limit`` of them or all."""
        pages = Pages(limit)
        while not pages.full:
            page = await self.history_page(limit=pages.SIZE, offset=pages.offset)
            for test in pages.take(page.tests):
                yield test
            if pages.offset >= page.total_tests:
                return

    @overload
    async def report(self, test_id: str) -> Report: ...
    @overload
    async def report(self, test_id: str, format: Literal["json"]) -> Report: ...
    @overload
    async def report(self, test_id: str, format: Literal["markdown", "html"]) -> str: ...
    async def report(self, test_id: str, format: Literal["json", "markdown", "html"] = "json") -> Report | str:  # noqa: A002
        """The decision report: its data, or as Markdown or one HTML file."""
        if format == "json":
            return await self._report(test_id)
        return await (self._report_html(test_id) if format == "html" else self._report_markdown(test_id))

    async def evidence(self, test_id: str, *, after: int = 0) -> AsyncGenerator[Evidence, None]:
        """All evidence behind a verdict, page by page; of a running test as far as it goes."""
        while True:
            page = await self.evidence_page(test_id, after=after)
            yield page
            if page.complete or page.last <= after:
                return
            after = page.last

    async def follow(
        self, test_id: str, timeout: float | None = None, *, poll: float = 2.0, patience: float = 300.0
    ) -> AsyncGenerator[Status, None]:
        """A test's status every ``poll`` seconds, until and with the one in which it has ended.

        An edge that is away (restarted, say) is waited for, for ``patience`` seconds. Raises NoVerdictYet after
        ``timeout`` seconds.
        """
        async with contextlib.aclosing(self._watched(Watch(test_id, timeout, poll, Outage(patience)))) as watched:
            async for status, _ in watched:
                yield status

    async def wait_for_verdict(
        self, test_id: str, timeout: float | None = None, on_progress: Callable[[Status], object] | None = None, *,
        poll: float = 2.0, patience: float = 300.0,
    ) -> Verdict:  # fmt: skip
        """Wait until a test has ended, and tell what came of it; ``on_progress`` is called with each change.

        Raises as `follow` does: NoVerdictYet after ``timeout`` seconds (the test goes on).
        """
        watch = Watch(test_id, timeout, poll, Outage(patience))
        async with contextlib.aclosing(self._watched(watch)) as watched:
            async for status, changed in watched:
                if changed and on_progress:
                    on_progress(status)
        return watch.verdict(await self._patiently(watch, type(self).test.request(test_id)))

    async def _watched(self, watch: Watch) -> AsyncGenerator[tuple[Status, bool], None]:
        """Each status, and whether it is worth a word."""
        while True:
            status = await self._patiently(watch, type(self).status.request(watch.test_id))
            changed = watch.seen(status)
            yield status, changed
            if status.ended:
                return
            await asyncio.sleep(watch.pause())

    async def _patiently(self, watch: Watch, request: Request[T]) -> T:
        while True:
            try:
                return await self._once(request)
            except CypriaError as exc:
                wait = watch.pause(exc)
            await asyncio.sleep(wait)

    async def events(self, *, live: bool = False, patience: float = 300.0) -> AsyncGenerator[Event, None]:
        """What happens, live. A line that is down is taken up again, for ``patience`` seconds, and then an event
        ``reconnected`` says that what happened meanwhile was not told. With ``live``, how every running test stands
        comes about once a second (``live``), and windows do not.
        """
        import aiohttp

        query, outage = self._events(live=live), Outage(patience)
        while True:
            failed: CypriaError | None = None
            try:
                through, context = self._opened(), self._settings.context
                async with alines(query, through, SILENCE_S, context) as (refused, told):
                    if refused is not None:
                        decoded(query, refused)
                    if outage.noticed:
                        yield Event("reconnected")
                    outage.over()
                    stream = Stream()
                    async for line in told:
                        if event := stream.feed(line):
                            yield event
            except NotSentError as exc:
                failed = self._lost(exc.__cause__, query, sent=False)
            except (OSError, aiohttp.ClientError) as exc:
                failed = self._lost(exc, query, sent=True)
            except CypriaError as exc:
                failed = exc
            await asyncio.sleep(outage.of(failed))

    async def _send(self, request: Request[T]) -> T:
        done = 0
        while True:
            done += 1
            try:
                return await self._once(request)
            except CypriaError as exc:
                wait = self._retry.pause(done, request, exc)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    async def _once(self, request: Request[T]) -> T:
        import aiohttp

        query = self._query(request)
        try:
            answer = await aexchange(query, self._opened(), self._settings.context)
        except NotSentError as exc:
            raise self._lost(exc.__cause__, query, sent=False) from exc.__cause__
        except (OSError, aiohttp.ClientError) as exc:
            raise self._lost(exc, query, sent=True) from exc
        return self._result(request, query, answer)
