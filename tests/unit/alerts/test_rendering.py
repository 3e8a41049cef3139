"""What people read: never more than Slack takes, never markup from outside."""

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel
from services.alerts.domain.letter import letter
from services.alerts.domain.pagerduty import event_body
from services.alerts.domain.render import escape, facts, figures, log_fields, number, slack_body
from services.alerts.domain.wording import Words

TEXT = st.text(max_size=4000)


def alert(**fields: object) -> Alert:
    return Alert.model_validate(
        {"incident": "i", "level": "CRITICAL", "title": "Too slow", "message": "m", "at_ms": 0, **fields}
    )


@given(TEXT, TEXT, st.dictionaries(st.text(max_size=40), st.floats(allow_nan=False), max_size=60))
def test_every_alert_fits_slacks_limits(title: str, message: str, numbers: dict[str, float]) -> None:
    body = slack_body(alert(title=title, message=message, numbers=numbers, incident="x" * 3000), "e", None)
    json.dumps(body)
    assert len(body["blocks"]) <= 50
    for block in body["blocks"]:
        if block["type"] == "header":
            assert 0 < len(block["text"]["text"]) <= 150
        elif "text" in block:
            assert 0 < len(block["text"]["text"]) <= 3000
        else:
            parts = block.get("fields") or block["elements"]
            assert 0 < len(parts) <= 10
            assert all(0 < len(part["text"]) <= 2000 for part in parts)


@given(TEXT, TEXT)
def test_no_mention_or_link_comes_out_of_text(title: str, message: str) -> None:
    body = slack_body(alert(title=f"{title}<!channel>", message=f"{message}<https://x|y>", rule="<@U1>"), "e", None)
    assert "<" not in body["text"]
    for block in body["blocks"][1:]:
        parts = [block["text"]] if "text" in block else block.get("fields") or block["elements"]
        assert all("<" not in part["text"] and ">" not in part["text"] for part in parts)


def test_an_escaped_character_is_never_cut_in_two() -> None:
    body = slack_body(alert(message="<" * 2000), "e", None)
    assert body["blocks"][1]["text"]["text"].removesuffix("\u2026").replace("&lt;", "") == ""


def test_level_title_numbers_and_test_are_there() -> None:
    body = slack_body(alert(test_id="t1", rule="r", value=0.123456789, n=400, numbers={"n_a": 3}), "e", "#ops")
    text = json.dumps(body, ensure_ascii=False)
    for part in ("CRITICAL: Too slow", "t1", "0.123457", "400", "Requests of A", "#ops"):
        assert part in text
    assert "channel" not in slack_body(alert(), "e", None)


def test_the_models_of_a_test_are_in_every_headline_and_figures_have_names() -> None:
    one = alert(tags={"model_a": "stable", "model_b": "canary", "team": "ml"}, threshold=10, n=7, numbers={"n_a": 9, "n_b": 7})
    assert slack_body(one, "e", None)["text"].endswith("CRITICAL: Too slow (canary against stable)")
    assert event_body(one, "e", "k")["payload"]["summary"] == "Too slow (canary against stable)"
    assert event_body(one, "e", "k", None, Words("mine", "mine", "m"))["payload"]["summary"] == "mine"
    assert letter(one, "e").subject == "[Cypria] CRITICAL: Too slow (canary against stable)"
    assert facts(one) == [
        ("Level", "CRITICAL"), ("Stable (A)", "stable"), ("Canary (B)", "canary"), ("team", "ml"), ("Limit", "10"),
        ("Requests of A", "9"), ("Requests of B", "7"),
    ]  # fmt: skip


def test_a_resolution_says_so() -> None:
    assert "RESOLVED: Too slow" in slack_body(alert(resolved=True), "e", None)["text"]


def test_numbers_are_short() -> None:
    assert [number(value) for value in (12.0, 0.1234567, 3100.5, 1e20)] == ["12", "0.123457", "3100.5", "1e+20"]
    assert figures(alert(value=1, bound=None, n=3, numbers={"x": 2})) == {"value": 1.0, "n": 3.0, "x": 2}


def test_the_log_leaves_out_what_is_not_known() -> None:
    assert log_fields(alert(), "e") == {
        "level_of_alert": AlertLevel.CRITICAL.value, "title": "Too slow", "message": "m", "incident": "i", "alert_id": "e",
    }  # fmt: skip


def test_ampersands_first() -> None:
    assert escape("&lt;<>") == "&amp;lt;&lt;&gt;"
