"""The destination `prometheus`: figures of all alerts, pushed to a Pushgateway."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.error import HTTPError

from prometheus_client import CollectorRegistry, push_to_gateway
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import basic_auth_handler, default_handler

from schemas.v1.alerts import Alert
from services._runtime.clock import monotonic
from services.alerts.adapters.base import BaseDestination
from services.alerts.domain.board import Board
from services.alerts.domain.history import History
from services.alerts.domain.http_status import outcome_of
from services.alerts.domain.outcome import Outcome, Retry, Sent
from services.alerts.settings import SEND_TIMEOUT_S, Channel

DEFAULT_JOB = "cypria"
_POLL_S = 0.05


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


class PushgatewayDestination(BaseDestination):
    """The figures come from the history, which every replica folds from the same stream: none pushes another number."""

    def __init__(self, channel: Channel, history: Callable[[], History], timeout_s: float = SEND_TIMEOUT_S) -> None:
        super().__init__(channel)
        options = channel.options
        self._gateway = str(options.pushgateway_url).rstrip("/")
        self._job = options.job_name or DEFAULT_JOB
        self._username = options.username
        self._password = channel.secrets.get("password")
        self._history = history
        self._timeout_s = timeout_s

    async def deliver(self, alert: Alert, event_id: str) -> Outcome:
        """Push once the history has the alert, which takes a moment."""
        del alert
        deadline = monotonic() + self._timeout_s
        while not self._history().holds(event_id):
            if monotonic() > deadline:
                return Retry("the history has not read this alert yet")
            await asyncio.sleep(_POLL_S)
        return await self._push()

    async def probe(self, alert: Alert, event_id: str) -> Outcome:
        """Push the figures as they are: a test alert is not counted."""
        del alert, event_id
        return await self._push()

    async def _push(self) -> Outcome:
        registry = CollectorRegistry()
        registry.register(BoardCollector(self._history().board))
        try:
            await asyncio.to_thread(
                push_to_gateway, self._gateway, self._job, registry, timeout=self._timeout_s, handler=self._handler()
            )
        except HTTPError as exc:
            return outcome_of(exc.code, dict(exc.headers or {}))
        except (OSError, ValueError) as exc:  # urllib's errors are OSErrors
            return Retry(type(exc).__name__)
        return Sent()

    def _handler(self) -> Any:
        if self._username is None:
            return default_handler
        return partial(_authenticated, username=self._username, password=self._password)


def _authenticated(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes, *,
    username: str, password: str | None,
) -> Callable[[], None]:  # fmt: skip
    return basic_auth_handler(url, method, timeout, headers, data, username, password)
