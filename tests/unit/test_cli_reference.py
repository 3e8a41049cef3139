"""What each command says of itself, and what a shell completes."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from services import cli
from services._cli import complete
from services._cli.reference import TARGET
from tests.unit.test_cli_strangers import ANSWERS, Stranger, named

NO_JSON = {"up", "router", "inference", "metrics", "monitor", "plan"}
"""They run until they are stopped, or are still to come."""


def command(words: str) -> Any:
    found: Any = get_command(cli.app)
    for word in words.split():
        found = found.commands[word]
    return found


def test_each_command_explains_itself_with_examples() -> None:
    for words in named(get_command(cli.app)):
        one = command(words)
        if one.hidden:
            continue
        assert one.help, words
        group = words.split()[0]
        assert f"cypria {group}" in one.epilog.partition("\b\n")[2], words
        assert all(getattr(parameter, "help", None) for parameter in one.params), (words, [p.name for p in one.params])
        assert words in NO_JSON or "--json" in [name for p in one.params for name in p.opts], words


def test_the_overview_is_grouped_and_a_slip_is_answered_with_what_was_meant() -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    shown = runner.invoke(cli.app, []).output
    assert "\x1b" not in shown
    for heading in ("Run", "Tests", "Models, keys, records", "Try it, look after it"):
        assert f"─ {heading} ─" in shown
    for slip, meant in ((["statsu"], "status"), (["status", "--jsno"], "--json")):
        done = runner.invoke(cli.app, slip)
        assert (done.exit_code, meant in done.output) == (2, True), done.output


def test_the_version_is_that_of_the_project() -> None:
    declared = tomllib.loads((TARGET.parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"cypria {declared}\n"


def test_names_are_completed_from_the_edge_and_its_silence_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Stranger()
    monkeypatch.setenv("CYPRIA_URL", server.url)
    monkeypatch.setenv("CYPRIA_API_KEY", "some-key")
    everything = json.dumps({"models": [{"name": "stable"}, {"name": "canary"}], "keys": [{"name": "ci"}], "running_tests": ["ab_1"],
                             "tests": [{"test_id": "ab_0", "decision": "keep_a"}]}).encode()  # fmt: skip
    try:
        server.answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(everything), everything)
        assert complete.models("") == ["stable", "canary"]
        assert complete.models("can") == ["canary"]
        assert (complete.keys("c"), complete.tests(""), complete.history("ab")) == (["ci"], ["ab_1"], [("ab_0", "keep_a")])
        for answer in ANSWERS.values():
            server.answer = answer
            assert complete.models("") == []
        monkeypatch.setenv("CYPRIA_API_KEY", "one\ntwo")
        assert complete.tests("") == []
        monkeypatch.setenv("CYPRIA_URL", "nonsense")
        assert complete.history("") == []
    finally:
        server.listening.close()
    assert capsys.readouterr() == ("", "")
