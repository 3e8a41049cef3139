"""The destination `prometheus`: figures of all alerts, pushed to a Pushgateway."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from schemas.v1.alerts import Alert
from services._runtime.clock import monotonic
from services.alerts.adapters.base import HttpDestination
from services.alerts.domain.board import Board
from services.alerts.domain.digest import GROUP
from services.alerts.domain.history import History
from services.alerts.domain.outcome import Outcome, Retry, Sent
from services.alerts.domain.peer import peer_of
from services.alerts.settings import SEND_TIMEOUT_S, Channel, setting

DEFAULT_JOB = "cypria"
_POLL_S = 0.05
_NOT_READ = Retry("the history has not read this alert yet")


class BoardCollector:
    """One test's figures carry its id; what belongs to no test has an empty one."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Any]:
        """The three families."""
        total = CounterMetricFamily("cypria_alerts", "Notifications of alerts, by level", labels=["test_id", "level"])
        last = GaugeMetricFamily(
            "cypria_alert_last_timestamp_seconds", "When the last alert was raised, Unix time", labels=["test_id"]
        )
        active = GaugeMetricFamily(
            "cypria_incidents_active", "Incidents of WARNING or above that are not resolved", labels=["test_id"]
        )
        for test, figures in self._board.tests.items():
            for level, count in figures.totals.items():
                total.add_metric([test, level.value], count)
            last.add_metric([test], figures.last_ms / 1000)
            active.add_metric([test], len(figures.active))
        yield from (total, last, active)


class PushgatewayDestination(HttpDestination):
    """The figures come from the history, which every replica folds from the same stream: none pushes another number.

    ``note`` writes down how far the figures go that are about to be pushed, and gives the farthest that any replica
    has written down: who pushed older ones, perhaps over newer ones, pushes again.
    """

    def __init__(
        self, channel: Channel, history: Callable[[], History], note: Callable[[str, int], Awaitable[int]],
        timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:  # fmt: skip
        options = channel.options
        login = f"username and {setting(options, 'password')}"
        super().__init__(channel, peer_of(str(options.pushgateway_url), "pushgateway_url", login), timeout_s)
        self._url = group_url(str(options.pushgateway_url).rstrip("/"), options.job_name or DEFAULT_JOB)
        self._headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        if options.username is not None:
            basic = aiohttp.BasicAuth(options.username, channel.secrets.get("password", ""), encoding="utf-8")
            self._headers["Authorization"] = basic.encode()
        self._history = history
        self._note = note
        self._timeout_s = timeout_s

    async def deliver(self, alert: Alert, event_id: str, *, repeat: bool = False) -> Outcome:
        """Push once the history has the alert, which takes a moment; it had all of a group before."""
        del alert, repeat
        deadline = monotonic() + self._timeout_s
        if not event_id.startswith(GROUP) and not await self._until(lambda: self._history().holds(event_id), deadline):
            return _NOT_READ
        while True:
            created, own = self._history().created, self._history().position
            farthest = await self._note(created, own)
            if farthest <= own:
                outcome = await self._push()
                if not isinstance(outcome, Sent) or await self._note(created, own) <= own:
                    return outcome
            elif not await self._until(partial(self._has_read, farthest), deadline):
                return _NOT_READ

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """Push the figures as they are: a test alert is not counted."""
        del alert, event_id
        return await self._push()

    def _has_read(self, sequence: int) -> bool:
        return self._history().position >= sequence

    @staticmethod
    async def _until(done: Callable[[], bool], deadline: float) -> bool:
        while not done():
            if monotonic() > deadline:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _push(self) -> Outcome:
        # Not by the client's own push: it blocks, and a gateway that drips would hold its thread for ever.
        registry = CollectorRegistry()
        registry.register(BoardCollector(self._history().board))
        return await self.post(self._url, generate_latest(registry), self._headers, method="PUT")


def group_url(gateway: str, job: str) -> str:
    """The address of a job's group; a name with a slash goes in base64, as the Pushgateway wants it."""
    if "/" in job:
        return f"{gateway}/metrics/job@base64/{base64.urlsafe_b64encode(job.encode()).decode()}"
    return f"{gateway}/metrics/job/{quote(job, safe='')}"
