"""`cypria watch`: a test as it runs, on a screen; a line, or a JSON object, for each change where there is none."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.live import Live

from cypria.types import ENDED
from services._cli import api, show, watch_feed, watch_view
from services._cli import watch_words as words
from services._cli.watch_view import Known
from services._cli.watch_words import Happening

EVERY_S = 2.0
"""Between two looks at a test: thirty a minute of the hundred that a key may have by default."""
FIGURES_EVERY_S = 10.0
_LISTENING_S = 5.0
_KEPT = 50
_STATUS = "/v1/ab-testing/status"


class View(Protocol):
    """Where it is shown."""

    def changed(self, known: Known, status: dict[str, Any]) -> None:
        """A test has other figures, or another state."""

    def happened(self, known: Known, happening: Happening, data: dict[str, Any]) -> None:
        """Something has happened; ``data`` as it came."""

    def connection(self, known: Known) -> None:
        """``known.line`` has changed."""

    def ended(self, result: dict[str, Any]) -> None:
        """A test has ended."""

    def tick(self, known: Known) -> None:
        """A second has passed."""


class Lines:
    """A plain line for each change."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}
        self._figures: dict[str, tuple[float, str]] = {}

    def changed(self, known: Known, status: dict[str, Any]) -> None:
        _ = known
        test_id = str(status.get("test_id"))
        sentence, figures = words.headline(status)[1], words.figures(status)
        at, before = self._figures.get(test_id, (0.0, ""))
        if self._sentences.get(test_id) != sentence:
            self._say(test_id, sentence)
        elif figures == before or time.monotonic() - at < FIGURES_EVERY_S:
            return
        self._sentences[test_id], self._figures[test_id] = sentence, (time.monotonic(), figures)
        if status.get("test_id") is not None:
            self._say(test_id, figures)

    def happened(self, known: Known, happening: Happening, data: dict[str, Any]) -> None:
        _ = known, data
        self._say(happening.test_id, happening.text)

    def connection(self, known: Known) -> None:
        self._say("", known.line or "connected again")

    def ended(self, result: dict[str, Any]) -> None:
        said = f"{result.get('status')}, decision {result.get('decision')}: {result.get('reason')}"
        self._say(str(result["test_id"]), said)

    def tick(self, known: Known) -> None:
        _ = known

    @staticmethod
    def _say(test_id: str, text: str) -> None:
        of = f"{test_id} " if test_id and test_id != "None" else ""
        line = show.styled(f"{_now()} {of}{text}").plain.replace("\n", " ")
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


class Objects:
    """One JSON object a line: ``kind`` is status, event, connection or end."""

    def changed(self, known: Known, status: dict[str, Any]) -> None:
        _ = known
        self._say("status", **status)

    def happened(self, known: Known, happening: Happening, data: dict[str, Any]) -> None:
        _ = known
        self._say("event", test_id=happening.test_id or None, text=happening.text, event=data)

    def connection(self, known: Known) -> None:
        self._say("connection", live=not known.line, text=known.line or "connected again")

    def ended(self, result: dict[str, Any]) -> None:
        self._say("end", **result)

    def tick(self, known: Known) -> None:
        _ = known

    @staticmethod
    def _say(kind: str, **fields: Any) -> None:
        sys.stdout.write(json.dumps({"kind": kind, "at": _now(), **fields}) + "\n")
        sys.stdout.flush()


class Screen:
    """The whole terminal, drawn anew at each change and each second; what was there before comes back in the end."""

    def __init__(self) -> None:
        self.last: Known | None = None
        self._live = Live(console=show.console, screen=True, auto_refresh=False)
        self._ascii = not (show.console.encoding or "").lower().startswith("utf")

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def changed(self, known: Known, status: dict[str, Any]) -> None:
        _ = status
        self.tick(known)

    def happened(self, known: Known, happening: Happening, data: dict[str, Any]) -> None:
        _ = happening, data
        self.tick(known)

    def connection(self, known: Known) -> None:
        self.tick(known)

    def ended(self, result: dict[str, Any]) -> None:
        """Shown when the screen is gone."""

    def tick(self, known: Known) -> None:
        self.last = known
        self.draw()

    def draw(self) -> None:
        """What is known, for the size that the terminal has now."""
        if (known := self.last) is None:
            return
        size = show.console.size
        text = watch_view.screen(known, size.width, size.height, ascii_only=self._ascii)
        self._live.update(text, refresh=True)


class Watch:
    """Looks at the tests that run, or at the one named, until it has ended."""

    def __init__(self, test_id: str | None, view: View, first: dict[str, Any], *, go_on: bool) -> None:
        self._named = test_id
        self._view = view
        self._go_on = go_on
        self._known = Known(at=_now()[11:19])
        self._again = asyncio.Event()
        self._listening = asyncio.Event()
        self._lost = {"events": "", "looks": ""}
        self._told: dict[str, Any] = {}
        self._seen: set[str] = set()
        self._shown_once: set[str] = set()
        self._first: dict[str, Any] | None = first
        self.results: list[dict[str, Any]] = []

    async def run(self) -> None:
        """Until what is watched has ended."""
        feed = asyncio.create_task(watch_feed.follow(self._event, self._line))
        clock = asyncio.create_task(self._clock())
        try:
            await self._look_on(feed)
        finally:
            for task in (feed, clock):
                task.cancel()
            await asyncio.gather(feed, clock, return_exceptions=True)

    async def _look_on(self, feed: "asyncio.Task[None]") -> None:
        await self._earlier()
        with contextlib.suppress(TimeoutError):  # so that nothing happens unseen after the first look
            await asyncio.wait_for(self._listening.wait(), _LISTENING_S)
        while True:
            await self._look()
            if self._over():
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), EVERY_S * max(1, len(self._known.statuses)))
                await asyncio.sleep(0.3)  # what is told together is looked at once
            self._again.clear()
            if feed.done() and (wrong := feed.exception()):
                raise wrong

    async def _clock(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._view.tick(self._known)

    async def _look(self) -> None:
        try:
            found = await self._statuses()
        except api.ApiError as exc:
            if exc.status in {401, 403} or (exc.status == 404 and not self._known.statuses):
                raise
            self._stands("looks", f"{exc}; asking again")
            await asyncio.sleep(exc.retry_after or EVERY_S)
            return
        except watch_feed.AWAY as exc:
            self._stands("looks", f"no answer, trying again: {watch_feed.explained(exc)}")
            return
        self._stands("looks", "")
        self._known.at = _now()[11:19]
        gone = [one for one in self._known.statuses if one not in found]
        self._known.statuses = found
        for test_id, status in found.items() or [("", {"test_id": None})]:
            if self._told.get(test_id) != (now := words.tells(status)):
                self._told[test_id] = now
                self._view.changed(self._known, status)
        ended = [one for one, status in found.items() if status.get("status") in ENDED]
        for test_id in (*gone, *ended):
            await self._end(test_id)

    async def _statuses(self) -> dict[str, dict[str, Any]]:
        """Of the test that is named, or of all that run."""
        first, self._first = self._first, None
        latest = first or await api.acall("GET", _STATUS, params={"test_id": self._named})
        if latest.get("test_id") is None:
            return {}
        ids = [latest["test_id"]] if self._named else (latest.get("running_tests") or [latest["test_id"]])
        found = {}
        for test_id in sorted(ids):
            found[test_id] = latest if test_id == latest["test_id"] else await self._status(test_id)
        return {test_id: status for test_id, status in found.items() if status is not None}

    @staticmethod
    async def _status(test_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await api.acall("GET", _STATUS, params={"test_id": test_id})
        except api.ApiError as exc:
            if exc.status == 404:
                return None
            raise
        return found

    async def _end(self, test_id: str) -> None:
        if test_id in self._shown_once:
            return
        try:
            result = await api.acall("GET", f"/v1/ab-testing/tests/{test_id}")
        except (api.ApiError, *watch_feed.AWAY):
            self._again.set()  # the end was seen, its record is not there yet
            self._known.statuses.setdefault(test_id, {"test_id": test_id, "status": "completed"})
            return
        self._shown_once.add(test_id)
        self.results.append(result)
        self._view.ended(result)

    def _over(self) -> bool:
        if self._go_on:
            return False
        left = [one for one in self._known.statuses if one not in self._shown_once]
        return bool(self.results) and not left

    async def _earlier(self) -> None:
        """The last alerts, for those who come late; without them it goes on all the same."""
        with contextlib.suppress(api.ApiError, *watch_feed.AWAY):
            params = {"limit": 5, "test_id": self._named}
            data = await api.acall("GET", "/v1/ab-testing/monitoring/alerts", params=params)
            for one in reversed(data.get("alerts") or []):
                at_ms = int(datetime.fromisoformat(one["time"]).timestamp() * 1000)
                self._take(words.alert(str(one["id"]), at_ms, one.get("test_id") or "", one))

    def _event(self, name: str, data: dict[str, Any]) -> None:
        happening = words.happening(name, data)
        if happening is None:
            return
        self._again.set()
        ours = self._named in {None, happening.test_id} or not happening.test_id
        if ours and self._take(happening):
            self._view.happened(self._known, happening, data)

    def _take(self, happening: Happening) -> bool:
        if happening.id in self._seen:
            return False
        self._seen.add(happening.id)
        self._known.happenings = [*self._known.happenings, happening][-_KEPT:]
        return True

    def _line(self, text: str, *, lost: bool) -> None:
        """How it stands with the events."""
        self._listening.set()
        self._stands("events", text if lost else "")

    def _stands(self, what: str, why: str) -> None:
        """Events and looks are lost and come back each by itself; told is when one is lost, and when all are back."""
        self._lost[what] = why
        line = self._lost["events"] or self._lost["looks"]
        changed = bool(line) != bool(self._known.line)
        self._known.line = line
        if changed:
            self._view.connection(self._known)
            self._again.set()


def watch(test_id: str | None, *, go_on: bool, json_: bool) -> None:
    """Watch until the end, until q or Ctrl-C; ends with the verdict."""
    first = api.call("GET", _STATUS, params={"test_id": test_id})
    _ = first["test_id"]
    console = show.console
    on_screen = console.is_terminal and not console.is_dumb_terminal and not json_
    view: View = Screen() if on_screen else Objects() if json_ else Lines()
    try:
        results = asyncio.run(_watched(test_id, view, first, go_on=go_on))
    except KeyboardInterrupt:
        results = []
    except BrokenPipeError:
        # Whoever read it has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    if isinstance(view, Screen):
        for result in results:
            show.result(result)
            console.print(f"more of it: cypria report {result['test_id']}", highlight=False)
        if not results and view.last is not None:
            for status in view.last.statuses.values():
                show.status(status)


async def _watched(test_id: str | None, view: View, first: dict[str, Any], *, go_on: bool) -> list[dict[str, Any]]:
    watching = Watch(test_id, view, first, go_on=go_on)
    running = asyncio.ensure_future(watching.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, running.cancel)
    if isinstance(view, Screen):
        view.start()
        loop.add_signal_handler(signal.SIGWINCH, view.draw)
    try:
        async with _keys(running.cancel, on=isinstance(view, Screen)):
            await running
    except asyncio.CancelledError:
        pass
    finally:
        if isinstance(view, Screen):
            view.stop()
    return watching.results


@contextlib.asynccontextmanager
async def _keys(leave: Callable[[], Any], *, on: bool) -> AsyncIterator[None]:
    """Calls ``leave`` at a q, where there is a keyboard; the terminal is as it was in the end."""
    import termios
    import tty

    if not on or not sys.stdin.isatty():
        yield
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        if (typed := os.read(file, 64)) in {b"", b"\x04"} or b"q" in typed.lower():
            leave()

    tty.setcbreak(file)
    loop.add_reader(file, pressed)
    try:
        yield
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
