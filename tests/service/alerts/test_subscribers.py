"""Foreign Python in a process of its own, which blocks, crashes, prints, raises and grows; AAR, Echo.Self, and the example of the docs."""

import json
import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from schemas import subjects
from schemas.v1.common import Decision, Outcome
from schemas.v1.windows import Cell, Watermark, Window
from services.alerts.domain.backoff import RetryPolicy
from tests.harness import eventually
from tests.service.alerts.occasions import ask, behaving, calls, decide, happen, hosts, package, roll_back, standing
from tests.service.alerts.side import ROOT, Side

QUICK = RetryPolicy(first_s=0.02, cap_s=0.05, max_attempts=3)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = behaving(tmp_path / "packages")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def subscriber(tmp_path: Path, **more: Any) -> dict[str, Any]:
    options = {"log": str(tmp_path / "calls"), "api_token": "hidden-word"}
    return {"type": "subscriber", "entry_point": "behaving", "options": options, "timeout_seconds": 60, **more}


async def last(side: Side, event_id: str, status: str, name: str = "behaving") -> Any:
    found = (await standing(side, name))["last"]
    return found if found and found["event"] == event_id and found["status"] == status else None


async def test_a_subscriber_is_called_once_for_each_occasion_in_one_process(side: Side, installed: Path, tmp_path: Path) -> None:
    async with side.service(integrations=[subscriber(tmp_path)]):
        await happen(side, "test.started", "fine")
        await happen(side, "test.paused", "fine", 3)
        await roll_back(side, "fine")
        await eventually(lambda: last(side, "fine.5.1.decided", "sent"))
        made = calls(tmp_path / "calls")
        assert [(call["kind"], call["event"]) for call in made] == [
            ("started", "fine.2.1.started"), ("rolled_back", "fine.5.1.rolled_back"), ("decided", "fine.5.1.decided")
        ]  # fmt: skip
        assert len({call["pid"] for call in made}) == 1
        (pid,) = hosts(os.getpid())
        environment = psutil.Process(pid).environ()
        assert not [name for name in environment if name.startswith(("CYPRIA", "PYTEST"))]
    await eventually(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize(
    ("word", "reason"),
    [("block", "no answer within 1 s, its process was ended"), ("crash", "its process was ended by SIGSEGV"),
     ("exit", "its process ended with status 3"), ("raise", "ValueError: not today, said ****"), ("quit", "SystemExit: enough")],
)  # fmt: skip
async def test_one_that_fails_is_tried_again_then_a_dead_letter_and_holds_up_nobody(
    side: Side, installed: Path, tmp_path: Path, word: str, reason: str
) -> None:
    entry = subscriber(tmp_path, **({"timeout_seconds": 1} if word == "block" else {}))
    async with side.service(side.slack(), retry=QUICK, integrations=[entry]):
        await happen(side, "test.started", f"{word}-always")
        await happen(side, "test.started", f"{word}-once")
        await side.raise_alert("meanwhile")
        await eventually(lambda: side.delivered("meanwhile"))
        (letter,) = await eventually(side.letters)
        assert reason in letter.reason
        assert "hidden-word" not in letter.reason
        assert letter.deliveries == QUICK.max_attempts

        async def calmed() -> bool:
            found = await standing(side, "behaving")
            return not found["waiting"] and not found["in_hand"]

        await eventually(calmed)
        assert (await standing(side, "behaving"))["dead_letters"] == 1
    made = [call["test"] for call in calls(tmp_path / "calls")]
    assert (made.count(f"{word}-always"), made.count(f"{word}-once")) == (QUICK.max_attempts, 2)


async def test_what_it_refuses_is_a_dead_letter_at_once_and_what_it_prints_breaks_nothing(
    side: Side, installed: Path, tmp_path: Path
) -> None:
    async with side.service(integrations=[subscriber(tmp_path)]):
        await happen(side, "test.started", "print")
        await happen(side, "test.started", "refuse")
        (letter,) = await eventually(side.letters)
        assert "GiveUp: never, given up at attempt 1" in letter.reason
    assert [call["test"] for call in calls(tmp_path / "calls")] == ["print", "refuse"]


async def test_one_that_grows_too_large_is_ended(side: Side, installed: Path, tmp_path: Path) -> None:
    entry = subscriber(tmp_path, memory_limit_mb=256, timeout_seconds=20)
    async with side.service(retry=RetryPolicy(max_attempts=1), integrations=[entry]):
        await happen(side, "test.started", "large")
        (letter,) = await eventually(side.letters)
        assert "it took more than 256 MiB" in letter.reason
        await happen(side, "test.started", "fine")
        await eventually(lambda: last(side, "fine.2.1.started", "sent"))


async def test_figures_come_beside_decisions(side: Side, installed: Path, tmp_path: Path) -> None:
    async with side.service(integrations=[subscriber(tmp_path, window_seconds=1)]):
        await happen(side, "test.started", "window")
        metrics = await side.server.connect("metrics")
        cell = Cell(test="window", variant="b", share_bp=1, done=3, outcomes={Outcome.OK: 3})
        payload = Window(partition=0, writer="w", watermark=Watermark(), cells=[cell]).model_dump_json().encode()
        try:

            async def told() -> Any:
                await metrics.jetstream().publish(subjects.window(0), payload)
                return [call for call in calls(tmp_path / "calls") if call["kind"] == "window"]

            found = await eventually(told, 40, every_s=0.2)
        finally:
            await metrics.close()
    assert found[0]["b"] == "canary"
    assert found[0]["requests"]["b"] >= 3


async def test_a_decision_does_not_wait_behind_figures(side: Side, installed: Path, tmp_path: Path) -> None:
    async with side.service(retry=QUICK, integrations=[subscriber(tmp_path, window_seconds=1, timeout_seconds=2)]):
        metrics = await side.server.connect("metrics")
        cells = [Cell(test=f"slow{n}", variant="b", share_bp=1, done=1, outcomes={Outcome.OK: 1}) for n in range(20)]
        payload = Window(partition=0, writer="w", watermark=Watermark(), cells=cells).model_dump_json().encode()
        try:

            async def stuck() -> bool:
                await metrics.jetstream().publish(subjects.window(0), payload)
                return any(call["kind"] == "slow" for call in calls(tmp_path / "calls"))

            await eventually(stuck, 40, every_s=0.2)
        finally:
            await metrics.close()
        await decide(side, test_id="fine")
        await eventually(lambda: [call for call in calls(tmp_path / "calls") if call["kind"] == "decided"])
        assert (await standing(side, "behaving"))["waiting"] >= 10
        told = [call["kind"] for call in calls(tmp_path / "calls")]
        assert told.index("decided") <= 4, "one figure was under way, and one more may have been next in the line"


async def test_one_that_cannot_be_made_says_why(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package(
        tmp_path / "packages", "broken_one", "import nowhere_at_all\n", broken="broken_one:Thing"
    )  # fmt: skip
    package(folder, "empty_one", "def make(options):\n    return object()\n", empty="empty_one:make")
    monkeypatch.syspath_prepend(str(folder))
    entries = [{"type": "subscriber", "entry_point": name} for name in ("broken", "empty")]
    async with side.service(integrations=entries):
        broken, empty = (await ask(side, "integrations-test"))["integrations"]
    assert "ModuleNotFoundError: No module named 'nowhere_at_all'" in broken["reason"]
    assert (empty["outcome"], empty["reason"]) == ("failed", "it has none of the methods")


# ----------------------------------------------------------------------------------------------------------

ECHO = '''
"""An AAR orchestrator and an Echo.Self engine, as they are: in-process objects; the first has no agents at first."""

import json
from pathlib import Path

HERE = Path(__file__).with_suffix(".log")


def _note(**fields):
    with HERE.open("a") as log:
        log.write(json.dumps(fields) + "\\n")


class Orchestrator:
    def __init__(self, agents=0):
        self.agents = agents

    async def orchestrate_inference(self, request):
        self.agents += 1
        if self.agents == 1:
            return {"error": "No agents available for request"}
        _note(request=request)
        return {"result": "ok"}

    async def update_agent_configurations(self, configurations):
        _note(configurations=configurations)


class Engine:
    def evolve_architecture(self, base_model, improved_model, performance_gain):
        _note(base=base_model, improved=improved_model, gain=performance_gain)


engine = Engine()
'''


async def test_aar_coordinates_its_agents_and_echo_self_evolves_on_promotions(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package(tmp_path / "packages", "echo_site", ECHO)
    monkeypatch.syspath_prepend(str(folder))
    entries = [
        {"type": "subscriber", "entry_point": "aar", "options": {"target": "echo_site:Orchestrator", "arguments": {"agents": 0}}},
        {"type": "subscriber", "entry_point": "echo_self", "options": {"target": "echo_site:engine"}},
    ]
    async with side.service(integrations=entries):
        await happen(side, "test.started")
        await eventually(lambda: last(side, "t1.2.1.started", "sent", "aar"))
        await roll_back(side, "t2")
        await decide(side, Decision.KEEP_A, "t3")
        await decide(side)
        await eventually(lambda: last(side, "t1.9.1.decided", "sent", "aar"))
        await eventually(lambda: last(side, "t1.9.1.decided", "sent", "echo_self"))
    notes = calls(folder / "echo_site.log")
    evolved = [note for note in notes if "base" in note]
    assert evolved == [{"base": "stable", "improved": "canary", "gain": 7.5}]
    tasks = [(n["request"]["task"], n["request"]["test_id"]) for n in notes if "request" in n]
    assert tasks == [
        ("ab_test_started", "t1"), ("ab_test_decided", "t2"), ("ab_test_decided", "t3"), ("ab_test_decided", "t1")
    ]  # fmt: skip
    configured = [[(one["id"], one["temporary_agent"]) for one in n["configurations"]] for n in notes if "configurations" in n]
    everybody = [("monitoring_agent", False), ("rollback_agent", False), ("metrics_agent", False)]
    assert configured[:2] == [everybody, everybody], "the first attempt ended with an error in the orchestrator's answer"
    assert configured[2:] == [
        [("rollback_agent", True)], [("monitoring_agent", True)], [("monitoring_agent", True)], [("monitoring_agent", True)]
    ]  # fmt: skip


async def test_a_target_that_is_none_is_named(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path / "packages", "echo_site", ECHO)))
    entries = [
        {"type": "subscriber", "name": "none", "entry_point": "aar"},
        {"type": "subscriber", "name": "other", "entry_point": "aar", "options": {"target": "echo_site:engine"}},
    ]
    async with side.service(integrations=entries):
        none, other = (await ask(side, "integrations-test"))["integrations"]
    assert "options.target: give the object as package.module:attribute" in none["reason"]
    assert other["outcome"] == "failed"


async def test_the_example_of_the_docs_does_what_it_says(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "integrations.md").read_text()
    (source,) = re.findall(r"```python\n# promotion_journal\.py\n(.*?)```", page, re.DOTALL)
    (project,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (value,) = re.findall(r'journal = "([\w:]+)"', project)
    (entry,) = [
        one for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) for one in yaml.safe_load(text)["integrations"]
        if one.get("entry_point") == "journal"
    ]  # fmt: skip
    monkeypatch.syspath_prepend(str(package(tmp_path / "packages", "promotion_journal", source, journal=value)))
    journal = tmp_path / "journal.jsonl"
    entry["options"] = {"file": str(journal)}
    async with side.service(integrations=[entry]):
        results = (await ask(side, "integrations-test"))["integrations"]
        assert results[0]["reason"] == "has started, decided"
        await happen(side, "test.started")
        await decide(side)
        await eventually(lambda: last(side, "t1.9.1.decided", "sent", "journal"))
    (line,) = journal.read_text().splitlines()
    assert json.loads(line) == {
        "event_id": "t1.9.1.decided", "test": "t1", "decision": "promote_b", "from": "stable", "to": "canary", "gain_percent": 7.5
    }  # fmt: skip
