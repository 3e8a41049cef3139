"""The report as people see it: complete, on one page, and nothing that was written into it comes alive."""

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.v1.common import Decision, TestStatus, rfc3339
from schemas.v1.experiment import Experiment, Guardrail, Ramp, RampStep, TestResult, VariantSummary, VerdictRecord
from schemas.v1.query import GuardrailStatus, VerdictStatus
from schemas.v1.record import Report, Series, TestChange
from services.router.domain.replaying import differences
from services.router.domain.report import POLICY, choose, document, page, render
from services.router.domain.report.figures import moment, number, span, when
from services.router.domain.report.plots import nice

NASTY = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)> | `code` **bold** [x](javascript:alert(3))\nnext'
T0 = 1_700_000_000
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Tags, attributes and text; fails when elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def series(points: int = 40, **columns: Any) -> Series:
    some: list[float | None] = [None if i % 7 == 3 else 100.0 + i for i in range(points)]
    base: dict[str, Any] = {
        "seconds": [T0 + 2 * i for i in range(points)], "share_bp": [2000] * points, "n_a": list(range(points)),
        "n_b": list(range(points)), "effect": some, "effect_low": [None if v is None else v - 5 for v in some],
        "effect_high": [None if v is None else v + 5 for v in some], "limit": [7.4] * points,
        "log_e": {"error_rate_increase": [0.1 * i for i in range(points)], "latency_increase": [None] * points},
        "latency_ms": {f"{arm}.{q}": some for arm in "ab" for q in ("p50", "p95", "p99")},
    }  # fmt: skip
    return Series(**(base | columns))


def verdict(**fields: Any) -> VerdictRecord:
    base: dict[str, Any] = {
        "decision": Decision.ROLLBACK, "reason": "errors", "rule": "error_rate_increase", "at_ms": T0 * 1000, "tick": T0,
        "value": 900.0, "bound": 212.0, "threshold": 50.0, "log_e": 8.25, "n_a": 1200, "n_b": 300, "split_bp": 2000,
        "digests": {"a": "sha256:aa", "b": "sha256:bb"}, "config_hash": "sha256:cc",
        "details": {"limit": 7.4, "unit": "%", "windows_seq": 77, "value_a": 1.0, "value_b": 10.0},
    }  # fmt: skip
    return VerdictRecord(**(base | fields))


def report(text: str = "errors rose", **fields: Any) -> Report:
    result = TestResult(
        test_id="ab_test_1", status=TestStatus.ROLLED_BACK, decision=Decision.ROLLBACK, reason=text,
        start_time=rfc3339(T0 * 1000), end_time=rfc3339(T0 * 1000 + 80_000), models={"variant_a": "stable", "variant_b": text},
        metrics_summary={"variant_a": VariantSummary(request_count=1200, outcomes={"ok": 1190, "timeout": 10}),
                         "variant_b": VariantSummary(request_count=300, error_count=30, error_rate=10.0)},
        verdict=verdict(reason=text), tags={text: text},
    )  # fmt: skip
    test = Experiment(
        test_id="ab_test_1", status=TestStatus.RUNNING, model_a="stable", model_b=text, share_bp=2000, salt="",
        created_ms=T0 * 1000, started_ms=T0 * 1000, duration_minutes=60, tags={text: text}, policies={"on_srm": text},
    )  # fmt: skip
    status = VerdictStatus(
        test_id="ab_test_1", summary=text,
        guardrails=[
            GuardrailStatus(name="error_rate_increase", action="rollback", log_e=8.25, limit=7.4, fired=True, threshold=50),
            GuardrailStatus(name=text, action="warn", log_e=math.inf, limit=7.4, value_a=math.nan, needs_requests=400),
        ],
        promotion={"met": False, "conditions": [{"name": text, "met": False, "text": text, "needs_requests": 90, "at_least": True}]},
    )  # fmt: skip
    changes = [
        TestChange(id="1", at_ms=T0 * 1000, kind="started", share_bp=1000, actor=text),
        TestChange(id="2", at_ms=T0 * 1000 + 20_000, kind="split_changed", share_bp=2000, actor="ops", reason=text),
    ]
    base: dict[str, Any] = {
        "test_id": "ab_test_1", "at_ms": T0 * 1000, "result": result, "configuration": test, "changes": changes,
        "status": status, "series": series(), "evidence": "complete", "progress": 1.0, "notes": [text],
        "alerts": [{"time": rfc3339(T0 * 1000), "level": "EMERGENCY", "title": text, "message": text}],
    }  # fmt: skip
    return Report(**(base | fields))


def test_a_page_asks_for_nothing_and_what_was_written_into_it_stays_text() -> None:
    text = page(report(NASTY))
    found = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "a", "use", "image", "foreignobject"} & set(found.tags)
    names = {name for _, name, _ in found.attributes}
    assert not {"src", "href", "style", "xlink:href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert found.text.count("<script>alert(1)</script>") > 8
    assert found.tags.count("figure") == 4
    (policy,) = [value for tag, _, value in found.attributes if tag == "meta" and "default-src" in value]
    assert POLICY.startswith(policy)
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY


def test_the_style_sheet_is_the_one_that_the_policy_names() -> None:
    import base64
    import hashlib

    (style,) = re.findall(r"<style>(.*?)</style>", page(report()), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in POLICY


def numbers_of(text: str) -> list[float]:
    found = []
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        for attribute in re.findall(r'\s(?:d|x|y|x1|x2|y1|y2|cx|cy|r)="([^"]*)"', svg):
            found += [float(part) for part in re.findall(r"-?\d+\.?\d*", attribute)]
            assert re.fullmatch(r"[MLHZ0-9 .\-]*", attribute), attribute
    return found


def test_every_coordinate_is_a_number_within_its_plot() -> None:
    found = numbers_of(page(report()))
    assert len(found) > 500
    assert all(0 <= value <= 760 for value in found)


VALUES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), points=st.integers(0, 12))
def test_no_series_makes_a_plot_that_is_no_svg(data: st.DataObject, points: int) -> None:
    def column() -> list[float | None]:
        return data.draw(st.lists(VALUES, min_size=points, max_size=points))

    odd = series(
        points, effect=column(), effect_low=column(), effect_high=column(), log_e={"error_rate_increase": column()},
        latency_ms={"a.p50": column(), "b.p99": column()}, share_bp=[0] * points,
        limit=data.draw(st.lists(st.floats(0.1, 100), min_size=points, max_size=points)),
    )  # fmt: skip
    text = page(report(series=odd))
    Page(text)
    assert "nan" not in text.lower().replace("nanos", "")
    assert all(0 <= value <= 760 for value in numbers_of(text))


def test_markdown_says_the_same_and_stays_text() -> None:
    text = document(report(NASTY))
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\[", text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert widths <= {3, 4, 5, 6, 7, 9}
    for word in ("error_rate_increase", "sha256:aa", "sha256:cc", "8.25 (limit 7.4)", "1,200", "fired", "Timeline", "Alerts"):
        assert word in text, word
    assert "cypria replay ab_test_1" in text


def test_a_running_test_says_what_it_waits_for_and_an_empty_one_still_renders() -> None:
    running = report()
    running.result.decision = running.result.verdict = running.result.reason = None
    running.result.status = TestStatus.RUNNING
    text = document(running)
    assert text.startswith("# No decision yet: running")
    assert "about 400 requests" in text
    assert "at least 90 requests" in text
    assert "cypria replay" not in text
    bare = Report(test_id="t", at_ms=1, result=TestResult(test_id="t", status=TestStatus.FAILED), notes=["the monitor is away"])
    for kind in ("json", "markdown", "html"):
        assert "the monitor is away" in render(bare, kind)
    assert "<figure" not in page(bare)


@pytest.mark.parametrize(("fields", "word"), [
    ({"value": None, "details": {"value_a": 0, "value_b": 100.0}}, "without bound: A has none"),
    ({"tick": None, "log_e": None, "value": 12.0, "details": {"unit": "errors in a row"}}, "12 errors in a row"),
    ({"tick": None, "value": None, "rule": "operator"}, "operator"),
])  # fmt: skip
def test_verdicts_of_every_kind_have_their_numbers(fields: dict[str, Any], word: str) -> None:
    told = report()
    told.result.verdict = verdict(**fields)
    assert word in document(told)
    for made in (document(told), page(told)):
        assert ("cypria replay" in made) == ("tick" not in fields), "what the statistics did not decide is not derived anew"


@pytest.mark.parametrize(("accept", "kind"), [
    ("", "json"), ("*/*", "json"), ("application/json", "json"), ("text/html", "html"), ("text/markdown", "markdown"),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "html"), ("image/png", "json"),
    ("text/html;q=0.2, text/markdown;q=0.7", "markdown"), ("text/html;q=0", "json"), ("TEXT/HTML", "html"),
    ("text/html;q=many", "json"), (";;,,", "json"), ("text/*", "markdown"),
])  # fmt: skip
def test_the_accept_header_chooses(accept: str, kind: str) -> None:
    assert choose(accept) == kind


def test_a_rollout_is_told_as_it_was_asked_for_and_as_it_went() -> None:
    told = report()
    assert told.configuration is not None
    told.configuration = told.configuration.model_copy(
        update={
            "preset": "conservative", "change_type": "model_update", "min_duration_minutes": 240.0,
            "ramp": Ramp(steps=[RampStep(share_bp=100, soak_minutes=30, min_requests=1000),
                                RampStep(share_bp=500, soak_minutes=0, min_requests=0, gate="manual")]),
            "guardrails": [Guardrail(metric="inter_token", margin_percent=15, action="step_down")],
        }
    )  # fmt: skip
    told.changes = [TestChange(id="3", at_ms=T0 * 1000, kind=kind, share_bp=500) for kind in ("ramped", "approved", "stepped_down")]
    assert told.status is not None
    assert told.series is not None
    points = len(told.series.seconds)
    told.status.guardrails.append(
        GuardrailStatus(name="cost_increase", action="step_down", log_e=1.0, limit=9.5, unit="$", value_a=0.25, value_b=0.5)
    )
    told.series.log_e["cost_increase"] = [1.0] * points
    told.series.limits["cost_increase"] = [9.5] * points
    assert "limit of cost_increase" in render(told, "html")
    text = document(told)
    for line in (
        "0.25 $", "1 % for at least 30 min and 1,000 requests, gate statistical", "5 % for at least 0 s and 0 requests, gate manual",
        "+15 %, then step down", "Kind of change", "model update", "Nothing promoted before", "the first after 10 min",
        "next step of the ramp", "ramp step approved", "stepped down",
    ):  # fmt: skip
        assert line in text, line
    assert "Ramp step" not in document(report())
    assert "Retries" not in document(report())


def test_the_report_says_which_models_answered_and_when_they_were_two() -> None:
    arms = {
        "variant_a": VariantSummary(request_count=9, digests={"sha256:aa": 9}),
        "variant_b": VariantSummary(request_count=5, digests={"sha256:b1": 1, "sha256:b2": 4}),
    }
    found = report()
    text = document(found.model_copy(update={"result": found.result.model_copy(update={"metrics_summary": arms})}))
    for line in ("A was served by", "sha256:aa (9 requests)", "sha256:b2 (4 requests)", "B was served by 2 different models"):
        assert line in text, line
    assert "served by" not in document(found)


def test_figures_as_people_read_them() -> None:
    assert [number(v) for v in (None, math.nan, math.inf, 0, 1e-17, 12, 12.3456, 123456.7, -0.5)] == [
        "-", "-", "-", "0", "0", "12", "12.35", "123,457", "-0.5",
    ]  # fmt: skip
    assert [span(s) for s in (0, 45, 300, 9000, 259_200)] == ["0 s", "45 s", "5 min", "2.5 h", "3 d"]
    assert when(None) == moment(None) == "-"
    assert moment("2025-01-01T12:00:00.500Z") == "2025-01-01 12:00:00 UTC"
    assert moment("yesterday") == "yesterday"
    assert nice(0, 100) == [0, 20, 40, 60, 80, 100]
    assert nice(1, 1) == [1]


def test_a_replay_differs_by_decision_rule_tick_or_evidence() -> None:
    recorded = verdict()
    assert differences(recorded, verdict(log_e=8.25 + 5e-10, n_a=3)) == []
    assert differences(recorded, verdict(log_e=8.25 + 2e-9))[0].startswith("ln E: recorded 8.25, replayed 8.25")
    (rule, tick) = differences(recorded, verdict(rule="latency_increase", tick=T0 + 1))
    assert rule == "rule: recorded error_rate_increase, replayed latency_increase"
    assert str(T0 + 1) in tick
    assert differences(recorded, verdict(log_e=None)) == ["ln E: recorded 8.25, replayed None"]
    assert differences(verdict(log_e=None), verdict(log_e=None)) == []
