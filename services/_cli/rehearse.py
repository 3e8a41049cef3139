"""A rehearsal: two throw-away engines, a test between them, traffic, and how long it takes until the canary is out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from rich.status import Status

from services._cli import api, ending, show, watch_feed, watch_words
from services._cli.load import Load, Tally, drive
from services._cli.progress import Follower
from services._cli.scenarios import Scenario
from services._cli.throwaway_engine import ThrowawayEngine

STABLE, CANARY = "rehearsal-stable", "rehearsal-canary"
USERS = 10_000
HEALTHY_S = 5.0
"""So long a canary is fine before it turns bad."""
_LOOK_S = 5.0
_MODELS = "/v1/ab-testing/models"


@dataclass
class Found:
    """What a rehearsal showed; ``seconds`` and ``requests`` are of the canary from its turning bad to the rollback."""

    scenario: str
    test_id: str = ""
    rolled_back: bool = False
    as_expected: bool = False
    reason: str = ""
    seconds: float | None = None
    requests: int | None = None
    tally: Tally = field(default_factory=Tally)

    def data(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "scenario": self.scenario, "test_id": self.test_id, "as_expected": self.as_expected,
            "rolled_back": self.rolled_back, "reason": self.reason, "seconds": self.seconds,
            "canary_requests": self.requests, "sent": self.tally.sent, "failed": self.tally.failed,
            "by_variant": dict(self.tally.by_variant), "by_status": dict(self.tally.by_status),
        }  # fmt: skip


class Rehearsal:
    """One run. ``port`` and the next are the engines'; ``quiet`` shows nothing."""

    def __init__(self, scenario: Scenario, load: Load, *, port: int, split: float, quiet: bool) -> None:
        self._scenario = scenario
        self._load = load
        self._split = split
        self._quiet = quiet
        self._stable, self._canary = ThrowawayEngine(port), ThrowawayEngine(port + 1)
        self._found = Found(scenario.name)
        self._out = asyncio.Event()
        self.gone: list[str] = []
        self.left: list[str] = []
        """What was taken away again and what could not be, in words."""
        self._bad_since: tuple[float, int] | None = None

    async def run(self, seconds: float) -> Found:
        """At most so many seconds of traffic; everything that was made is taken away in the end, also where it is
        cancelled.
        """
        self._say(f"rehearsal of {self._scenario.name}: {self._scenario.what}")
        async with self._engines(), self._models(), self._test():
            with self._line() as line:
                await self._play(seconds, line)
        found = self._found
        found.as_expected = found.rolled_back == self._scenario.bad
        return found

    async def _play(self, seconds: float, line: Status | None) -> None:
        tally = self._found.tally
        sending = asyncio.create_task(drive(self._load, seconds=seconds, tally=tally, stop=self._out.is_set))
        turning = asyncio.create_task(self._turn())
        looked = time.monotonic()
        try:
            while not sending.done():
                await asyncio.wait({sending}, timeout=0.5)
                if time.monotonic() - looked > _LOOK_S:  # should the events be cut off
                    looked = time.monotonic()
                    await self._look()
                if line is not None:
                    line.update(f"sent {tally.sent}  finished {tally.finished}  failed {tally.failed}  "
                                f"canary asked {self._canary.requests}")  # fmt: skip
            await sending
            await self._look()
        finally:
            for task in (sending, turning):
                task.cancel()
            await asyncio.gather(sending, turning, return_exceptions=True)

    async def _turn(self) -> None:
        if not self._scenario.bad:
            return
        await asyncio.sleep(HEALTHY_S)
        self._canary.error_share, self._canary.slower = self._scenario.error_share, self._scenario.slower
        self._bad_since = (time.monotonic(), self._canary.requests)
        self._say(f"from now on {self._scenario.what}")

    async def _look(self) -> None:
        with contextlib.suppress(api.ApiError, *watch_feed.AWAY):
            params = {"test_id": self._found.test_id}
            status = await api.acall("GET", "/v1/ab-testing/status", params=params)
            if status["status"] == "rolled_back":
                self._rolled_back((status.get("verdict") or {}).get("reason") or "")

    def _event(self, name: str, data: dict[str, Any]) -> None:
        happening = watch_words.happening(name, data)
        if happening is None or happening.test_id != self._found.test_id:
            return
        self._say(happening.text)
        if str(data.get("type")).startswith("cypria.test.rolled_back"):
            self._rolled_back((data.get("data") or {}).get("reason") or "")

    def _rolled_back(self, reason: str) -> None:
        if self._found.rolled_back:
            return
        self._found.rolled_back, self._found.reason = True, reason
        if self._bad_since is not None:
            begun, before = self._bad_since
            self._found.seconds = round(time.monotonic() - begun, 2)
            self._found.requests = self._canary.requests - before
        self._out.set()

    @contextlib.asynccontextmanager
    async def _engines(self) -> AsyncIterator[None]:
        try:
            for engine in (self._stable, self._canary):
                try:
                    await engine.start()
                except OSError as exc:
                    api.fail(f"an engine cannot listen on 127.0.0.1:{engine.port} ({exc.strerror}): give --engine-port")
            yield
        finally:
            await self._stable.stop()
            await self._canary.stop()

    @contextlib.asynccontextmanager
    async def _models(self) -> AsyncIterator[None]:
        made: list[str] = []
        try:
            for name, engine in ((STABLE, self._stable), (CANARY, self._canary)):
                made.append(name)
                await self._register(name, engine)
            yield
        finally:
            for name in made:
                await self._undo(f"{name} is removed", "DELETE", f"{_MODELS}/{name}")

    async def _register(self, name: str, engine: ThrowawayEngine) -> None:
        body = {"name": name, "engine": "openai", "base_url": engine.base_url, "replace": True}
        try:
            done = await ending.whole(api.acall("POST", _MODELS, body=body))
        except api.ApiError as exc:
            api.fail(f"{name} cannot be registered: {exc}{self._hint(str(exc))}")
        state, reason = await Follower(f"{_MODELS}/{name}", done, quiet=True).run()
        if state != "ready":
            api.fail(f"{name} is not served: {reason or state}{self._hint(reason)}")

    def _hint(self, why: str) -> str:
        if "model_sources" not in why:
            return ""
        places = ", ".join(f'"http://127.0.0.1:{engine.port}/"' for engine in (self._stable, self._canary))
        return f"; for a rehearsal: model_sources: {{allow: [{places}]}} in the workers' configuration"

    @contextlib.asynccontextmanager
    async def _test(self) -> AsyncIterator[None]:
        feed: asyncio.Task[None] | None = None
        try:
            try:
                await ending.whole(self._start())
            except api.ApiError as exc:
                api.fail(f"the test cannot be started: {exc}")
            self._say(f"{self._found.test_id}: {CANARY} against {STABLE} at {self._split:g} %; `cypria watch` shows it")
            feed = asyncio.create_task(watch_feed.follow(self._event, _unsaid))
            yield
        finally:
            if self._found.test_id and not self._found.rolled_back:
                stop = {"test_id": self._found.test_id, "reason": "rehearsed"}
                await self._undo(f"{self._found.test_id} is stopped", "POST", "/v1/ab-testing/stop", stop)
            if feed is not None:
                feed.cancel()
                await asyncio.gather(feed, return_exceptions=True)

    async def _start(self) -> None:
        body = {"model_a": STABLE, "model_b": CANARY, "traffic_split_percent": self._split}
        self._found.test_id = str((await api.acall("POST", "/v1/ab-testing/start", body=body))["test_id"])

    async def _undo(self, done: str, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        """Take something away again; what is gone already is as good."""
        failed = "it was not waited for"
        try:
            await api.acall(method, path, body=body)
            failed = ""
        except api.ApiError as exc:
            failed = "" if exc.status == 404 else str(exc)
        except watch_feed.AWAY as exc:
            failed = api.explained(exc)
        finally:
            (self.left if failed else self.gone).append(f"{method} {path}: {failed}" if failed else done)

    def _say(self, text: str) -> None:
        if not self._quiet:
            show.console.print(show.styled(f"{time.strftime('%H:%M:%S', time.gmtime())} {text}"), soft_wrap=True)

    def _line(self) -> contextlib.AbstractContextManager[Status | None]:
        on = not self._quiet and show.console.is_terminal
        return show.console.status("") if on else contextlib.nullcontext()


def _unsaid(text: str, *, lost: bool) -> None:
    """The end of the events is no end of the rehearsal: it also looks by itself."""


async def rehearse(
    scenario: Scenario, load: Load, seconds: float, *, port: int, split: float, quiet: bool
) -> Found:
    """Play a scenario through the edge that ``load`` names.

    What could not be taken away again is told. Where a signal ends it, so is that; the command ends with its status.
    """
    rehearsal = Rehearsal(scenario, load, port=port, split=split, quiet=quiet)
    try:
        return await ending.orderly(rehearsal.run(seconds))
    except ending.EndedError as exc:
        _tell(f"not rehearsed to the end, {exc}: {', '.join(rehearsal.gone) or 'nothing had been made'}")
        raise SystemExit(exc.status) from None
    finally:
        for left in rehearsal.left:
            _tell(f"something of the rehearsal is left: {left}")


def _tell(text: str) -> None:
    show.wide(stderr=True).print(show.styled(f"cypria: {text}"), soft_wrap=True)


def told(found: Found) -> list[str]:
    """What came of it, in lines."""
    tally = found.tally
    if found.rolled_back and found.seconds is not None:
        first = f"rolled back {found.seconds:.1f} s and {found.requests} of its requests after it turned bad"
    else:
        first = "rolled back" if found.rolled_back else "left alone"
    judged = "as it should be" if found.as_expected else "which it should not have been"
    return [
        f"{first}: {judged}",
        f"clients sent {tally.sent} requests and saw {tally.failed} failures",
        f"more of it: cypria report {found.test_id}",
    ]
