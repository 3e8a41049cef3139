"""`cypria audit` for people: changes in a line, and times as people say them."""

from datetime import datetime
from typing import Any

import pytest

from services._cli import audit
from services._runtime.clock import now_ms


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (None, None, ""),
        ({"status": "running"}, None, ""),
        ({"status": "running", "version": 1}, {"status": "paused", "version": 2}, "status running -> paused"),
        ({"traffic_split_percent": 10.0}, {"traffic_split_percent": 33.33}, "traffic_split_percent 10 -> 33.33"),
        (None, {"model_b": "canary", "test_id": "ab_test_1"}, "model_b canary"),
        ({"a": 1}, {"a": 1}, ""),
    ],
)
def test_a_change_is_what_differs(before: Any, after: Any, shown: str) -> None:
    assert audit.change({"before": before, "after": after}) == shown


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800)])
def test_how_long_ago_is_a_time(text: str, seconds: int) -> None:
    moment = datetime.fromisoformat(audit.since_time(text) or "")
    assert abs(now_ms() / 1000 - seconds - moment.timestamp()) < 60


def test_a_time_goes_to_the_api_as_it_is() -> None:
    assert audit.since_time(None) is None
    assert audit.since_time("2025-01-01T00:00:00Z") == "2025-01-01T00:00:00Z"


@pytest.mark.parametrize("text", ["yesterday", "-1h", ""])
def test_what_is_neither_time_nor_span_is_refused_with_both(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        audit.since_time(text)
    assert f"--since is '{text}': give a time, such as 2025-01-01T12:00:00Z, or how long ago, such as 2h" in (
        capsys.readouterr().err
    )
