"""`window_cells` as a log with a position: appending sums exactly once, whoever dies in between."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters
from services.metrics.adapters.clickhouse import AWAY, ClickHouse
from services.metrics.domain.rows import COLUMNS

log = get_logger(__name__)

TABLE = "window_cells"
_LONGEST_PAUSE_S = 5.0


class Position(NamedTuple):
    """Last WINDOWS sequence taken in, the broker time of that message, and how many messages were taken in."""

    sequence: int
    time_ms: int
    messages: int


NOWHERE = Position(0, 0, 0)


class PositionTakenError(Exception):
    """Another process has moved the position; this one must stand by."""


class StoppedError(Exception):
    """The process is ending; what was not confirmed is settled by the next one."""


class WindowStore:
    """Sums in ClickHouse together with the WINDOWS sequence that they go up to."""

    def __init__(self, engine: ClickHouse) -> None:
        self._engine = engine
        self.problem: str | None = None

    def positions(self, client: Client) -> dict[str, Position]:
        """The position in each WINDOWS stream that was ever taken in, by its creation time."""
        self._engine.settle(client, TABLE)
        rows = client.query(
            f"SELECT digest, max(wm), max(wm_time_ms), sum(messages) FROM {self._engine.database}.{TABLE} "  # noqa: S608
            "WHERE test = '' GROUP BY digest"
        ).result_rows
        return {str(created): Position(*map(int, numbers)) for created, *numbers in rows}

    def _position(self, client: Client, created: str) -> int:
        return self.positions(client).get(created, NOWHERE).sequence

    def append(
        self,
        client: Client,
        created: str,
        previous: int,
        rows: list[list[Any]],
        last: int,
        stopping: Callable[[], bool],
    ) -> None:
        """Insert rows that lead from position ``previous`` to ``last``, and do not return before they are in, once.

        The token names the step, so that a repetition is dropped by the engine; the position read back tells what
        really happened: mine; the previous one after an OK (the token was recorded, its part was not: next token) or
        after an error (the old request may still run: same token); anything else is another writer.
        Raises PositionTakenError and StoppedError; while the engine is away it tries again. Of several servers the
        caller begins again at another one, from the position that is found there: this raises what the engine does.
        """
        attempt, pause = 0, 0.1
        while True:
            confirmed = False
            token = f"{created}/{previous}/{attempt}"
            try:
                self._engine.insert(
                    client, TABLE, COLUMNS, rows, {"insert_deduplication_token": token, "insert_deduplicate": 1}
                )
                confirmed = True
            except AWAY as exc:
                self._failed("insert", exc)
                if self._engine.several:
                    raise
            try:
                now = self._position(client, created)
            except AWAY as exc:
                self._failed("read_back", exc)
                if self._engine.several:
                    raise
                now = None
            if now == last:
                self.problem = None
                return
            if now is not None and now != previous:
                raise PositionTakenError(f"the position is {now}, neither {previous} nor {last}")
            if now == previous and confirmed:
                meters.INSERT_RETRIES.labels("token_without_part").inc()
                log.warning("token_without_part", token=token)
                attempt += 1
            if stopping():
                raise StoppedError
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _failed(self, what: str, exc: Exception) -> None:
        self.problem = f"ClickHouse does not take data ({type(exc).__name__})"
        meters.INSERT_RETRIES.labels(what).inc()
        log.warning("clickhouse_failed", what=what, error=str(exc)[:300])
