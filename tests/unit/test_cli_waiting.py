"""What a pipeline sees of a test that it waits for: exit statuses, and words where there is no verdict."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from services.cli import app
from tests.fakes.edge import Edge, refusal
from tests.system import ROOT


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    edge = Edge()
    monkeypatch.setenv("CYPRIA_URL", edge.url)
    monkeypatch.setenv("CYPRIA_API_KEY", "k")
    yield edge
    edge.close()


@pytest.mark.parametrize(
    ("decision", "expected"), [("promote_b", 0), ("rollback", 3), ("keep_a", 4), ("inconclusive", 5), (None, 5)]
)
def test_the_exit_status_of_a_pipeline_is_the_verdict(server: Edge, decision: str | None, expected: int) -> None:
    server.answer((200, {"test_id": "t1", "status": "started"}), (200, {"test_id": "t1", "status": "completed"}), (200, {"test_id": "t1", "status": "completed", "decision": decision}))
    done = CliRunner().invoke(app, ["start", "a", "b", "--tag", "commit=c=1", "--wait", "--timeout", "1h30m", "--json"])
    assert done.exit_code == expected, done.output
    told = json.loads(done.stdout)
    assert (told["decision"], told["promoted"], told["result"]["test_id"]) == (decision or "inconclusive", expected == 0, "t1")
    assert server.seen[0][2]["tags"] == {"commit": "c=1"}
    assert "t1 completed" in done.stderr


def test_who_watches_sees_one_line_that_is_kept_up(server: Edge) -> None:
    running = {"test_id": "t1", "status": "running", "effective_split_percent": 25}
    server.answer((200, running), (200, {"test_id": "t1", "status": "completed"}), (200, {"test_id": "t1", "status": "completed"}),
                  (200, {"test_id": "t1", "status": "completed", "decision": "promote_b", "reason": "better"}))  # fmt: skip
    watching, shown = pty.openpty()
    command = [sys.executable, "-m", "services.cli", "wait", "t1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=shown, cwd=ROOT, text=True) as waiting:
        os.close(shown)
        drawn = ""
        with contextlib.suppress(OSError):  # of a terminal that nobody writes to any more
            while chunk := os.read(watching, 65_536):
                drawn += chunk.decode(errors="replace")
        os.close(watching)
        said, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, said.splitlines()[0]) == (0, "t1: promote_b: better")
    assert "t1 running; split 25 %" in drawn
    assert "\r" in drawn


def test_a_pipeline_that_waits_in_vain_is_told_what_goes_on(server: Edge) -> None:
    runner = CliRunner()
    server.answer((200, {"test_id": "t1", "status": "running"}))
    done = runner.invoke(app, ["wait", "t1", "--timeout", "1s"])
    assert (done.exit_code, "cypria stop --test-id t1" in done.stderr) == (124, True), done.output
    server.answer((404, refusal("there is no test 't1'")))
    assert runner.invoke(app, ["wait", "t1"]).exit_code == 1
    for arguments in (["wait", "t1", "--timeout", "soon"], ["wait", "t1", "--timeout", "0s"], ["start", "a", "b", "--timeout", "1h"]):
        done = runner.invoke(app, arguments)
        assert (done.exit_code, "--timeout" in done.output) == (2, True), done.output
    assert runner.invoke(app, ["start", "a", "b", "--tag", "commit"]).exit_code == 2
