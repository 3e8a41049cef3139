"""The record of a test as people read it the morning after: the report in three formats, and its replay."""

import asyncio
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from services._cli.load import Load, Tally, drive
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import environment, eventually
from tests.system import ROOT, System


async def cypria(system: System, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A command of the CLI; in a thread, because the upstreams answer from this loop."""
    env = environment(CYPRIA_URL=system.url, CYPRIA_API_KEY=system.key, PYTHONPATH=str(ROOT), COLUMNS="160")
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "services.cli", *arguments], capture_output=True, text=True, env=env,
        cwd=ROOT, timeout=200, check=False,
    )  # fmt: skip


async def rolled_back(system: System, canary: FakeOpenAI) -> str:
    """A test whose canary dies after a good start; its split was changed once."""
    test_id = await system.start_test(
        traffic_split_percent=20, tags={"ticket": "<b>OPS-1</b>"},
        # the evidence is to decide here, not a router's own breaker
        failure_criteria={"max_consecutive_errors": 100_000},
    )  # fmt: skip
    state: dict[str, Any] = {}
    load = asyncio.create_task(
        drive(Load(system.url, system.key, "stable", 60), seconds=90, stop=lambda: bool(state.get("compared")))
    )

    async def compared() -> bool:
        series = (await system.api("GET", f"tests/{test_id}/series"))["series"] or {"effect": []}
        state["compared"] = len([value for value in series["effect"] if value is not None]) > 1
        return bool(state["compared"])

    await eventually(compared, 90, 0.3)
    await load
    await system.api("PATCH", "traffic-split", {"traffic_split_percent": 30})
    canary.behaviour.status = 500
    tally = Tally()
    load = asyncio.create_task(
        drive(
            Load(system.url, system.key, "stable", 60, seed=2), seconds=90, tally=tally,
            stop=lambda: state.get("status") == "rolled_back",
        )
    )  # fmt: skip

    async def ended() -> bool:
        state.update(await system.status(test_id))
        return state["status"] == "rolled_back"

    await eventually(ended, 90, 0.1)
    await load
    assert tally.failed == 0
    return test_id


class Page(HTMLParser):
    """What a page asks for and what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.asked: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.asked += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_record_of_a_rollback_in_three_formats_and_its_replay(
    system: System, upstreams: tuple[FakeOpenAI, FakeOpenAI], tmp_path: Path
) -> None:
    test_id = await rolled_back(system, upstreams[1])

    async def complete() -> dict[str, Any] | None:
        found = await system.api("GET", f"tests/{test_id}/report")
        kinds = [change["kind"] for change in found["changes"]]
        return found if found["evidence"] == "complete" and found["alerts"] and "rolled_back" in kinds else None

    report = await eventually(complete, 60, 0.3)
    verdict = report["result"]["verdict"]
    assert report["result"]["decision"] == verdict["decision"] == "rollback"
    for name in ("rule", "threshold", "n_a", "n_b", "split_bp", "tick", "log_e", "config_hash"):
        assert verdict[name] is not None, name
    assert verdict["log_e"] >= verdict["details"]["limit"]
    # an increase over a control without errors is no number; both rates are
    assert verdict["value"] is not None or verdict["details"]["value_a"] == 0
    assert verdict["details"]["value_b"] > 0
    assert set(verdict["digests"]) == {"a", "b"}
    assert verdict["config_hash"] == report["configuration"]["config_hash"]
    kinds = [change["kind"] for change in report["changes"]]
    assert kinds[:2] == ["started", "split_changed"]
    assert {"rollback_requested", "rolled_back"} <= set(kinds)
    assert report["configuration"]["salt"] == ""
    assert next(g for g in report["status"]["guardrails"] if g["fired"])["name"] == verdict["rule"]
    assert report["series"]["seconds"][-1] == verdict["tick"]
    assert report["result"]["metrics_summary"]["variant_b"]["outcomes"]
    assert report["notes"] == []

    markdown = await system.client.get(f"/v1/ab-testing/tests/{test_id}/report", headers={"Accept": "text/markdown"})
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert markdown.text.startswith("# Rolled back: canary (B) against stable (A)")
    assert "<b>" not in markdown.text

    html = await system.client.get(f"/v1/ab-testing/tests/{test_id}/report", headers={"Accept": "text/html"})
    assert html.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in html.headers["content-security-policy"]
    page = Page()
    page.feed(html.text)
    assert page.asked == []
    assert not {"script", "link", "img", "b", "iframe"} & set(page.tags)
    assert page.tags.count("figure") == 4
    assert verdict["rule"] in page.text
    assert "<b>OPS-1</b>" in page.text

    evidence = await system.api("GET", f"tests/{test_id}/evidence?limit=3")
    assert len(evidence["ticks"]) == 3
    assert evidence["complete"] is False
    assert not any("new_units" in tick for tick in evidence["ticks"])

    replayed = await cypria(system, "replay", test_id)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "the same verdict" in replayed.stdout
    as_json = await system.api("GET", f"tests/{test_id}/replay")
    assert as_json["same"] is True
    assert as_json["replayed"] == verdict

    target = tmp_path / "report.html"
    written = await cypria(system, "report", test_id, "--html", str(target))
    assert written.returncode == 0, written.stderr
    assert target.read_text().startswith("<!doctype html>")
    shown = await cypria(system, "report", test_id)
    assert shown.returncode == 0, shown.stderr
    assert verdict["rule"] in shown.stdout

    # a test that an operator ended has nothing to derive anew, and says so
    by_hand = await system.start_test(traffic_split_percent=10)
    await system.api("GET", f"tests/{by_hand}/replay", expect=409)
    await system.api("POST", "rollback", {"test_id": by_hand, "reason": "lunch"})
    nothing = await cypria(system, "replay", by_hand)
    assert nothing.returncode == 0, nothing.stdout + nothing.stderr
    assert "nothing to derive anew" in nothing.stdout
    result = await system.api("GET", f"tests/{by_hand}")
    assert result["verdict"]["rule"] == "operator"
    assert result["verdict"]["config_hash"]
    # the first one's entry is another test's now: its record stays
    again = await cypria(system, "replay", test_id)
    assert again.returncode == 0, again.stdout + again.stderr
    await system.api("GET", "tests/ab_test_never/report", expect=404)
