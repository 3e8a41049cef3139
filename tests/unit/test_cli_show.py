"""Tables for people show what the API said, whatever stands in it."""

import pytest
from rich.console import Console

from services._cli import show


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=100, record=True, color_system=None, force_terminal=False)
    monkeypatch.setattr(show, "console", console)
    return console


def test_text_from_outside_is_no_markup_and_moves_no_cursor(screen: Console) -> None:
    show.result({"test_id": "ab_test_1", "status": "completed", "decision": "keep_a", "reason": "see [/b] \x1b[2J [red]x",
                 "metrics_summary": {"variant_a": {}}, "models": {"variant_a": "m[/x]"}})  # fmt: skip
    shown = screen.export_text()
    assert "see [/b] ?[2J [red]x" in shown
    assert "m[/x]" in shown


def test_the_first_column_stays_whole_and_times_are_times(screen: Console) -> None:
    test_id = "ab_test_01a20bd48bb6649fa8a9"
    show.rows([{"test_id": test_id, "reason": "long " * 60}], ["test_id", "reason"])
    show.rows([{"at_ms": 1_795_494_812_000, "actor": "ops", "target": ""}], ["at_ms", "actor", "target"])
    shown = screen.export_text()
    assert test_id in shown
    assert "2026-11-24T04:33:32+00:00" in shown


def test_no_test_and_no_figures(screen: Console) -> None:
    show.status({"test_id": None})
    show.status({"test_id": "ab_test_1", "status": "running", "metrics": None, "verdict": {"summary": "needs more"}})
    assert "no test is running" in screen.export_text(clear=False)
    assert "needs more" in screen.export_text()


def test_a_ramp_is_told_in_a_line_with_what_it_waits_for(screen: Console) -> None:
    ramp = {"step": 2, "of": 3, "shares": [0.5, 5.0, 25.0], "soak_left_minutes": 1.25, "gate": "manual", "approved": True,
            "held": None}  # fmt: skip
    show.status({"test_id": "ab_test_1", "status": "running", "ramp": ramp, "retry_at": "2026-01-31T03:00:00.000Z",
                 "waiting_for": "the queue of 'm[/x]' to empty"})  # fmt: skip
    show.status({"test_id": "ab_test_2", "ramp": {**ramp, "held": "the split was set by [ops]"}})
    shown = screen.export_text()
    assert "ramp step 2 of 3: 0.50 [5] 25 %, gate manual (approved), soaks 1.2 min more" in shown
    assert "goes back up at 2026-01-31T03:00:00.000Z" in shown
    assert "waiting for: the queue of 'm[/x]' to empty" in shown
    assert "held: the split was set by [ops]" in shown


def test_variants_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=80, record=True, color_system=None, force_terminal=False)
    monkeypatch.setattr(show, "console", console)
    figures = {"request_count": 123_456, "error_rate": 12.34, "in_flight": 7, "ttft_p95_ms": 4230.4} | dict.fromkeys(
        ("avg_latency_ms", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"), 5335.4
    )
    console.print(show.variants({"variant_a": figures}, {"variant_a": "stable"}))
    shown = console.export_text()
    for word in ("variant", "stable", "requests", "123,456", "12.34", "5,335.4", "4,230.4"):
        assert word in shown, shown


def test_a_verdict_that_cannot_be_replayed_says_why_and_shows_no_empty_column(screen: Console) -> None:
    show.replay({"state": "none", "same": None, "message": "not the statistics' decision", "recorded": {"n_a": 5}})
    assert screen.export_text().strip() == "not the statistics' decision"
