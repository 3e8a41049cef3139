"""Follows an order on a model until it is carried out: a bar for each worker, or lines where nobody watches."""

import asyncio
import contextlib
import time
from typing import Any, Self

import aiohttp
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from services._cli import api, show

FAST_S, SLOW_S = 0.3, 1.0
FAST = 6
"""So many looks are quick; more of them would use up the key's limit of control requests."""
PATIENCE_S = 30.0
"""How long an edge may be away."""

Outcome = tuple[str, str]
"""(state, reason): what came of it."""


class Follower:
    """Looks at a model until the order that ``done`` tells of is carried out. ``quiet`` shows nothing."""

    def __init__(self, path: str, done: dict[str, Any], *, quiet: bool) -> None:
        self._path = path
        self._status = str(done["status"])
        self._generation = int(done["generation"])
        self._accepted_without_worker = "no worker" in str(done.get("message", ""))
        self._view = None if quiet else _view()
        self._wait_s = 0.0

    async def run(self) -> Outcome:
        """(state, reason) in the end; ``failed`` where it did not load."""
        with self._view or contextlib.nullcontext():
            looks = 0
            while True:
                await asyncio.sleep(max(self._wait_s, FAST_S if looks < FAST else SLOW_S))
                looks += 1
                model = await self._look()
                if self._view and model:
                    self._view.show(model["by_worker"])
                outcome = self._outcome(model)
                if outcome is not None:
                    return outcome

    async def _look(self) -> dict[str, Any] | None:
        """The model as it is now; None when there is none."""
        self._wait_s = 0.0
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                found: dict[str, Any] = await api.acall("GET", self._path)
                return found
            except api.ApiError as exc:
                if exc.status == 404:
                    return None
                if exc.status not in {429, 503} or time.monotonic() > end:
                    api.fail(str(exc))
                await asyncio.sleep(max(exc.retry_after, SLOW_S))
                self._wait_s = SLOW_S
            except (OSError, TimeoutError, aiohttp.ClientError) as exc:
                if time.monotonic() > end:
                    api.fail(f"no answer from {api.url()} ({exc}): it goes on without being watched")
                await asyncio.sleep(SLOW_S)

    def _outcome(self, model: dict[str, Any] | None) -> Outcome | None:
        """What has come of it; None while it goes on."""
        rows = model["by_worker"] if model else []
        if self._status == "removed":
            left = [row for row in rows if 0 < row["generation"] < self._generation]
            return None if left else ("removed", "")
        entry = model and model["entry"]
        if not entry:
            return "failed", "somebody has removed it meanwhile"
        if entry["generation"] > self._generation:
            return self._overtaken(entry)
        if entry["stage"] == "settled":
            return ("unloaded", "") if entry["desired"] == "unloaded" else ("ready", _partly(rows))
        return self._stuck(rows)

    def _stuck(self, rows: list[dict[str, Any]]) -> Outcome | None:
        failed = [row for row in rows if self._failed(row)]
        if rows and len(failed) == len(rows):
            return "failed", failed[0]["reason"]
        return ("registered", "") if not rows and self._accepted_without_worker else None

    @staticmethod
    def _overtaken(entry: dict[str, Any]) -> Outcome:
        if entry["actor"] != "keeper" or entry["desired"] != "loaded":
            return "failed", f"{entry['actor']} wants something else of it meanwhile ({entry['desired']})"
        # Where it was loaded beside the one before, the worker has said already that this goes on.
        said = "the present one goes on" in entry["reason"]
        return "failed", entry["reason"] if said else f"{entry['reason']}; the one before goes on"

    def _failed(self, row: dict[str, Any]) -> bool:
        return row["state"] == "failed" and row["generation"] >= self._generation and not row["next_state"]


def _partly(rows: list[dict[str, Any]]) -> str:
    failed = [f"{row['worker']}: {row['reason']}" for row in rows if row["state"] == "failed"]
    return f"but not everywhere: {'; '.join(failed)}" if failed else ""


def _said(row: dict[str, Any]) -> tuple[str, float | None]:
    state = row["next_state"] or row["state"]
    return state, None if state in {"ready", "unloaded", "failed", "registered"} else row["progress"]


class _Bars:
    """One bar for each worker."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[share]}"), TimeElapsedColumn(),
            console=show.console, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            state, share = _said(row)
            worker = row["worker"]
            if worker not in self._tasks:
                self._tasks[worker] = self._progress.add_task("", total=None, share="")
            resting = state in {"ready", "unloaded", "failed"}
            self._progress.update(
                self._tasks[worker], description=show.styled(f"{worker} {state}").plain, total=1.0 if resting else
                (None if share is None else 1.0), completed=1.0 if resting else share or 0.0,
                share="" if share is None else f"{share:.0%}",
            )  # fmt: skip


class _Lines:
    """A line whenever something is new, at most every 10 %."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            state, share = _said(row)
            now = (state, -1 if share is None else int(share * 10))
            if self._told.get(row["worker"]) != now:
                self._told[row["worker"]] = now
                done = "" if share is None else f" {share:.0%}"
                show.console.print(show.styled(f"{row['worker']} {state}{done}"))


def _view() -> "_Bars | _Lines":
    return _Bars() if show.console.is_terminal else _Lines()
