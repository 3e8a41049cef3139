"""What `cypria watch` makes of a status: words for people, and a screen that fits."""

from typing import Any

import pytest

from cypria.errors import ApiError
from services._cli import watch_feed
from services._cli import watch_words as words
from services._cli.watch_view import Known, screen
from services._cli.watch_words import Happening
from tests.fakes.edge import Edge, refusal

TEST = "ab_test_01a216392387b1f58787"


def guardrail(name: str = "ttft_increase", log_e: float = 0.1, **fields: Any) -> dict[str, Any]:
    return {"name": name, "action": "rollback", "log_e": log_e, "limit": 8.0, "fired": False, "warned": False, "value_a": 310.0,
            "value_b": 322.4, "unit": "ms", **fields}  # fmt: skip


def status(rails: Any = (), **fields: Any) -> dict[str, Any]:
    conditions = [
        {"name": "sample_size", "met": False, "text": "44 requests of A and 12 of B finished, at least 100 of each are asked for"},
        {"name": "latency", "met": False, "text": "latency: B's traffic comes from too few units (9 effective buckets, needs 20)"},
        {"name": "primary_metric", "met": False, "text": "latency: B's traffic comes from too few units (9 effective buckets, needs 20)"},
        {"name": "sample_ratio", "met": True, "text": "units are split as configured"},
    ]
    verdict = {"guardrails": list(rails), "promotion": {"met": False, "conditions": conditions}, "summary": "needs 411 more requests"}
    figures = {"request_count": 12_345, "error_rate": 0.5, "latency_p50_ms": 310.2, "latency_p95_ms": 1_234.5, "latency_p99_ms": 9_876.0,
               "ttft_p50_ms": 37.0, "ttft_p95_ms": 292.0, "ttft_p99_ms": 400.0, "in_flight": 3, "fallback_count": 2}  # fmt: skip
    return {"test_id": TEST, "status": "running", "elapsed_minutes": 3.2, "remaining_minutes": 56.8, "traffic_split_percent": 30.0,
            "effective_split_percent": 30.0, "auto_rollback": True, "verdict": verdict, "running_tests": [TEST],
            "models": {"variant_a": "stable", "variant_b": "canary"},
            "metrics": {"variant_a": figures, "variant_b": figures}, **fields}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "style", "said"),
    [
        ({"test_id": None}, words.CALM, "No test is running"),
        (status([guardrail()]), words.GOOD, "Safe so far: nothing speaks against canary"),
        (status([guardrail(log_e=5.0)]), words.GOOD, "Safe so far"),
        (status([guardrail(log_e=6.0, near=True)]), words.CAREFUL, "close to the limit of ttft_increase (ln E 6.0 of 8.0), at which it is taken out."),
        (status([guardrail(log_e=9.0, fired=True)]), words.BAD, "Not safe: canary has passed the limit of ttft_increase; it is taken out"),
        (status([guardrail(log_e=9.0, fired=True, action="pause")]), words.BAD, "the test pauses"),
        (status([guardrail("ttft_increase_warning", 9.0, action="warn", warned=True)]), words.CAREFUL, "shown to be worse in ttft_increase."),
        (status([guardrail("error_rate_warning", 9.0, action="warn", warned=True) | {"relative": False, "threshold": 500.0}]), words.CAREFUL, "above the warning level of error_rate."),
        (status([guardrail("error_rate_warning", 9.0, action="warn", warned=True) | {"relative": False, "threshold": 300.0}]), words.GOOD, "Safe so far"),
        (status([guardrail("ttft_increase_warning", 7.9, action="warn")]), words.GOOD, "Safe so far"),
        (status(effective_split_percent=0.0), words.CAREFUL, "canary is held back"),
        (status(verdict=None), words.CAREFUL, "Cannot tell"),
        (status(auto_rollback=False), words.GOOD, "automatic rollback is off"),
        (status([guardrail(log_e=9.0, fired=True)], auto_rollback=False), words.BAD, "the limit of ttft_increase; an alert tells of it."),
        (status(status="paused"), words.CAREFUL, "Paused: canary stays at 30 % of stable's traffic"),
        (status(status="rolling_back"), words.BAD, "being taken out step by step"),
        (status(status="scheduled", starts_at="2026-01-31T03:00:00Z"), words.CALM, "from 2026-01-31T03:00:00Z on"),
        (status(status="rolled_back"), words.BAD, "Rolled back: stable answers everything"),
        (status(status="completed", verdict={"decision": "promote_b"}), words.GOOD, "promote canary"),
        (status(status="completed", verdict={"decision": "keep_a"}), words.CAREFUL, "keep stable"),
        (status(status="completed", verdict=None), words.CALM, "without a decision"),
        (status(metrics={}), words.CALM, "Too early to tell"),
    ],
)  # fmt: skip
def test_a_sentence_says_what_runs_and_whether_it_is_safe(given: dict[str, Any], style: str, said: str) -> None:
    found = words.headline(given)
    assert (found[0], said in found[1]) == (style, True), found


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (120, 40), (40, 8), (300, 100)])
def test_a_screen_fits_whatever_its_size_and_text_moves_no_cursor(width: int, height: int) -> None:
    rails = [guardrail(f"guardrail_{n}_of_a_long_name", float(n)) for n in range(12)]
    happenings = [Happening(str(n), 1_795_669_173_000 + n, TEST, words.BAD, f"rolled\x1b[2J back {n}: " + "why " * 50) for n in range(30)]
    one = status(rails, models={"variant_a": "meta-llama/" + "x" * 60, "variant_b": "模型"}, waiting_for="the queue to empty")
    for known in (
        Known({}, happenings),
        Known({TEST: one}, happenings, "connection lost (no connection: Connection refused); trying again"),
        Known({f"{TEST[:-2]}{n:02}": one for n in range(30)}, happenings),
    ):
        lines = screen(known, width, height, ascii_only=True).split("\n", allow_blank=True)
        assert len(lines) == height
        assert max(line.cell_len for line in lines) <= width
        assert "\x1b" not in "".join(line.plain for line in lines)
    if width == 80:
        shown = screen(Known({TEST: one}, happenings), width, height).plain
        for said in ("9,876", "guardrail_11", "11.0 of 8.0", "44 requests of A and 12 of B", "what happened last", "back 29"):
            assert said in shown, shown
        assert shown.count("too few units") <= 1  # the same words once
        several = screen(Known({TEST: one, "ab_test_2": one}, happenings), width, height).plain
        assert f"{TEST} " in several  # whole, to be copied


def test_what_nobody_needs_to_read_is_left_out() -> None:
    def told(name: str, kind: str, **data: Any) -> str | None:
        found = words.happening(name, {"id": "1", "type": f"cypria.{kind}.v1", "data": {"at_ms": 1, "test_id": TEST, **data}})
        return found and found.text

    assert told("event", "test.split_changed", share_bp=3333, actor="ops") == "split set at 33.33 % by ops"
    assert told("event", "test.rolled_back", actor="monitor", reason="errors") == "rolled back by monitor: errors"
    assert told("rollback", "rollback.requested", order={"reason": "errors", "at_ms": 5}) == "rollback requested: errors"
    assert told("alert", "alert", level="WARNING", title="Slow", message="B is slow", resolved=True) == "WARNING Slow (resolved): B is slow"
    assert told("alert", "alert", level="INFO", title="Test started") is None
    assert told("event", "model.progress", model="m") is None
    assert words.happening("window", {"cells": []}) is None


async def test_events_are_read_as_the_client_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge()
    monkeypatch.setenv("CYPRIA_URL", edge.url)
    monkeypatch.setenv("CYPRIA_API_KEY", "k")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: connected\n\n"
    try:
        edge.answer(head + b'event: window\ndata: [no object]\n\nevent: alert\ndata:{"a":\ndata: 1}\n\nevent: live\ndata: {"cut": 1}')
        assert [one async for one in watch_feed.events()] == [("", {}), ("alert", {"a": 1})]
        for answer, status in (((403, refusal("look, but not here")), 403), ((200, {"no": "stream"}), 200)):
            edge.answer(answer)
            with pytest.raises(ApiError) as refused:
                assert [one async for one in watch_feed.events()] == []
            assert refused.value.status == status
        edge.answer((503, refusal("starting"), {"Retry-After": "7"}))
        with pytest.raises(ApiError, match="starting") as away:
            assert [one async for one in watch_feed.events()] == []
        assert away.value.retry_after == 7
    finally:
        edge.close()
    with pytest.raises(watch_feed.AWAY):
        assert [one async for one in watch_feed.events()] == []


def test_time_that_passes_is_no_change() -> None:
    first = status([guardrail()])
    assert words.tells(first) == words.tells({**first, "elapsed_minutes": 9.9, "remaining_minutes": 1.0})
    assert words.tells(first) != words.tells({**first, "traffic_split_percent": 31.0})
    assert words.tells(first) != words.tells(status([guardrail(log_e=0.2)]))
