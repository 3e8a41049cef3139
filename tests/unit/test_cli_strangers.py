"""Every command against something that is no edge, or half of one: words that say what to do, and no traceback."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from typer.main import get_command
from typer.testing import CliRunner as TyperRunner

from services import cli
from services._cli import api

COMMANDS = (
    "start a b", "wait x", "status", "watch", "stop", "pause", "resume", "approve", "split 5", "rollback", "history", "report x", "report x --json", "replay x",
    "alerts list", "alerts test", "alerts redrive", "models", "models register ENTRY", "models show m", "models load m", "models unload m",
    "models remove m", "models plan m", "keys list", "keys create n --role client", "keys rotate n", "keys revoke n",
    "audit list", "audit verify", "integrations list", "integrations test", "integrations redrive",
    "units export FILE", "units erase FILE",
)  # fmt: skip
NOT_ASKING = {"up", "router", "inference", "metrics", "monitor", "provision", "plan", "load", "models digest", "doctor"}
"""What asks no edge, or has an answer of its own to one that fails; the doctor, which looks at the machine too, is tried on some."""

PAGE = b"<html><body>Please log in</body></html>"
ANSWERS = {
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE),
    "a proxy's error": b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE),
    "another's error": b'HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"error":"boom"}',
    "the way to a log-in": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    "an empty object": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "half of an answer": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"test_id',
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "nothing": b"",
}


class Stranger:
    """A server that gives every caller ``answer``."""

    def __init__(self) -> None:
        self.answer = b""
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                client.recv(65_536)
                client.sendall(self.answer)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stranger]:
    server = Stranger()
    for name, value in (("URL", server.url), ("API_KEY", "some-key"), ("DATA_DIR", str(tmp_path))):
        monkeypatch.setenv(f"CYPRIA_{name}", value)
    yield server
    server.listening.close()


def named(group: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every command of the command line."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from named(one, (*path, name))
        else:
            yield " ".join((*path, name))


def test_every_command_that_asks_is_tried() -> None:
    tried = {one for one in named(get_command(cli.app)) if any(command.startswith(one) for command in COMMANDS)}
    assert set(named(get_command(cli.app))) - tried - NOT_ASKING == set()


def test_no_stranger_brings_a_command_down(stranger: Stranger, tmp_path: Path) -> None:
    files = {"FILE": tmp_path / "units", "ENTRY": tmp_path / "entry.yaml"}
    files["FILE"].write_text("someone")
    files["ENTRY"].write_text("{name: m, engine: openai, base_url: 'http://127.0.0.1:9/v1'}")
    runner, whole = CliRunner(), get_command(cli.app)
    for answered, answer in ANSWERS.items():
        stranger.answer = answer
        # What is made of an answer is one for all; what is taken out of it is each command's own.
        for command in (*COMMANDS, "doctor") if answered in {"a page", "an empty object"} else ("status", "alerts list"):
            done = runner.invoke(whole, [str(files.get(word, word)) for word in command.split()])
            said = str(done.exception) if isinstance(done.exception, api.ApiError) else done.output  # `main` says it
            assert isinstance(done.exception, SystemExit | api.ApiError), (answered, command, done.exception, said)
            assert "Traceback" not in said
            assert "object at" not in said
            assert isinstance(done.exception, api.ApiError) or done.exit_code == 1, (answered, command, done.exit_code, said)
            assert any(remedy in " ".join(said.split()) for remedy in ("CYPRIA_URL", "check")), (answered, command, said)


def test_what_no_command_can_do_is_told_by_the_entry_point(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = ANSWERS["an empty object"]
    monkeypatch.setattr("sys.argv", ["cypria", "status"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "has no 'test_id': check CYPRIA_URL" in capsys.readouterr().err


def test_a_key_of_several_lines_is_refused_before_it_is_sent(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kept in (b"a\nb", b"\xff\xfe"):
        monkeypatch.delenv("CYPRIA_API_KEY", raising=False)
        (tmp_path / "admin.key").write_bytes(kept)
        done = TyperRunner().invoke(cli.app, ["status"])
        assert (done.exit_code, "have that file hold one line" in done.output) == (2, True), done.output
    monkeypatch.setenv("CYPRIA_API_KEY", "a\nb")
    assert TyperRunner().invoke(cli.app, ["status"]).exit_code == 2
