"""What tests of integrations share: events of tests on the bus, and packages with subscribers in them."""

import contextlib
import json
import textwrap
from pathlib import Path
from typing import Any

import psutil

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import Decision, TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import RollbackOrder, TestResult, VerdictRecord
from tests.service.alerts.side import Side

BEHAVING = '''
"""Writes down every call, then does what the test's id says; only the first time where it ends in -once."""

import asyncio, json, os, signal, sys, time
from pathlib import Path

from schemas.v1.integrations import GiveUp


class Behaving:
    def __init__(self, options):
        self.log = Path(options["log"])
        print("made")

    def _act(self, kind, event):
        seen = self.log.read_text() if self.log.exists() else ""
        with self.log.open("a") as log:
            log.write(json.dumps({"kind": kind, "event": event.event_id, "pid": os.getpid(), "test": event.test_id}) + "\\n")
        if event.test_id.endswith("-once") and event.event_id in seen:
            return
        word = event.test_id.split("-")[0]
        if word == "block":
            time.sleep(600)
        elif word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif word == "exit":
            os._exit(3)
        elif word == "raise":
            raise ValueError("not today, said hidden-word")
        elif word == "quit":
            sys.exit("enough")
        elif word == "refuse":
            raise GiveUp("never")
        elif word == "print":
            print("x" * 100_000)
            print(json.dumps({"id": 1, "outcome": "raised", "reason": "forged"}))
            os.write(1, b"\\xff\\xfe no text\\n")
            print("errors", file=sys.stderr)
            sys.stdin.read()
        elif word == "large":
            self.kept = bytearray(400 << 20)
            self.kept[::4096] = b"x" * len(self.kept[::4096])
            time.sleep(600)

    def on_started(self, event):
        self._act("started", event)

    async def on_decided(self, event):
        await asyncio.sleep(0)
        self._act("decided", event)

    def on_rolled_back(self, event):
        self._act("rolled_back", event)

    def on_metric_window(self, event):
        if event.test_id.startswith("slow"):
            with self.log.open("a") as log:
                log.write(json.dumps({"kind": "slow", "event": event.event_id}) + "\\n")
            time.sleep(600)
        if event.test_id.startswith("window"):
            requests = {name: one.requests for name, one in event.variants.items()}
            with self.log.open("a") as log:
                log.write(json.dumps({"kind": "window", "event": event.event_id, "requests": requests, "b": event.model_b}) + "\\n")
'''


def package(folder: Path, module: str, source: str, **entries: str) -> Path:
    """A folder as `pip install --target` leaves it: a module, and a dist-info with its entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cypria.integrations]", *lines, ""]))
    return folder


def behaving(folder: Path) -> Path:
    return package(folder, "behaving", BEHAVING, behaving="behaving:Behaving")


def calls(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def hosts(parent: int) -> list[int]:
    """Processes of subscribers below a process."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may go while it is looked at
            if "subscribers.host" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


async def happen(side: Side, kind: str, test_id: str = "t1", version: int = 2, **fields: Any) -> str:
    """One event of a test on the bus; its id."""
    event = TestEvent(
        **{"test_id": test_id, "version": version, "status": TestStatus.RUNNING, "model_a": "stable", "model_b": "canary",
           "share_bp": 2000, "at_ms": 1_700_000_000_000, **fields}
    )  # fmt: skip
    event_id = f"{test_id}.{version}.1"
    payload = dump(envelope(kind, event_id, "router", event.at_ms, event, test_id))
    await side.router.jetstream().publish(subjects.event(kind), payload, headers={"Nats-Msg-Id": event_id})
    return event_id


async def decide(side: Side, decision: Decision = Decision.PROMOTE_B, test_id: str = "t1", version: int = 9) -> str:
    verdict = VerdictRecord(decision=decision, reason="because", rule="promotion", at_ms=1, value=-7.5, n_a=90, n_b=10,
                            details={"metric": "latency"})  # fmt: skip
    result = TestResult(test_id=test_id, status=TestStatus.COMPLETED, decision=decision, reason="because", verdict=verdict)
    return await happen(side, "test.completed", test_id, version, status=TestStatus.COMPLETED, result=result)


async def roll_back(side: Side, test_id: str = "t1", version: int = 5) -> str:
    verdict = VerdictRecord(decision=Decision.ROLLBACK, reason="errors", rule="critical_error_rate", at_ms=1, value=0.4)
    order = RollbackOrder(rule="critical_error_rate", reason="errors", actor="monitor", at_ms=1, verdict=verdict)
    result = TestResult(test_id=test_id, status=TestStatus.ROLLED_BACK, decision=Decision.ROLLBACK, verdict=verdict)
    return await happen(
        side, "test.rolled_back", test_id, version, status=TestStatus.ROLLED_BACK, order=order, result=result, share_bp=0
    )


async def ask(side: Side, verb: str, **query: Any) -> dict[str, Any]:
    """A question to the alerts service, as the router asks it."""
    reply = await side.router.request(subjects.alerts(verb), json.dumps(query).encode(), timeout=60)
    return dict(json.loads(reply.data))


async def standing(side: Side, name: str) -> dict[str, Any]:
    return next(one for one in (await ask(side, "integrations"))["integrations"] if one["integration"] == name)
