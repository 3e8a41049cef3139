"""`cypria report` and `cypria replay`: a long test's evidence takes the monitor minutes to read, so both ask again."""

import time
from collections.abc import Callable
from typing import Any

from services._cli import api, show

PATIENCE_S = 1200.0
_EVERY_S = 0.5


def report(test_id: str) -> dict[str, Any]:
    """The report as JSON, once all evidence is in it."""
    return _patiently(lambda: api.call("GET", _path(test_id, "report")), "evidence")


def rendered(test_id: str, media: str) -> str:
    """The report as text of a media type, once all evidence is in it."""
    report(test_id)
    return str(api.call("GET", _path(test_id, "report"), accept=media))


def replay(test_id: str) -> dict[str, Any]:
    """The recorded and the replayed verdict, once all evidence has been read."""
    return _patiently(lambda: api.call("GET", _path(test_id, "replay")), "state")


def exit_status(replay: dict[str, Any]) -> int:
    """0: the same, or nothing that could differ; 1: another verdict; 2: it could not be derived."""
    if replay.get("same") is not None:
        return 0 if replay["same"] else 1
    return 0 if replay.get("state") == "complete" else 2


def _patiently(ask: Callable[[], dict[str, Any]], state: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    with show.console.status("reading the evidence") as line:
        while (found := ask())[state] == "reading" and time.monotonic() < deadline:
            line.update(f"reading the evidence: {100 * found.get('progress', 0.0):.0f} %")
            time.sleep(_EVERY_S)
    return found


def _path(test_id: str, what: str) -> str:
    return f"/v1/ab-testing/tests/{test_id}/{what}"
