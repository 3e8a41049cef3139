"""`cypria provision` as an operator runs it: once, twice, and without a server to talk to."""

import subprocess
import sys
from pathlib import Path

from tests.harness import NatsServer, environment
from tests.system import ROOT


def provision(**extra: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "provision"], env=environment(PYTHONPATH=str(ROOT), **extra),
        cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


def test_provision_is_idempotent(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats-data")
    server.start()
    try:
        settings = {
            "CYPRIA_NATS__SERVERS": f'["{server.url}"]',
            "CYPRIA_NATS__USER": "provision",
            "CYPRIA_NATS__PASSWORD": server.embedded.passwords["provision"],
            "CYPRIA_DATA_DIR": str(tmp_path / "data"),
        }
        first, second = provision(**settings), provision(**settings)
    finally:
        server.kill()
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "applied" in first.stdout
    assert "up to date" in second.stdout
    assert "applied" not in second.stdout


def test_without_servers_it_says_what_to_set() -> None:
    done = provision()
    assert done.returncode == 78
    assert "nats.servers is not set" in done.stderr
