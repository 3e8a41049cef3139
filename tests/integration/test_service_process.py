"""A service as a process of its own: a clean stop is a clean exit, a bad configuration a clear one."""

import asyncio
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services._runtime.server import EXIT_CONFIG, MAX_FILES
from tests.harness import NatsServer, environment, eventually
from tests.system import ROOT

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def start(service: str, server: NatsServer, data_dir: Path, **extra: str) -> "subprocess.Popen[str]":
    env = environment(
        PYTHONPATH=str(ROOT),
        CYPRIA_NATS__SERVERS=f'["{server.url}"]',
        CYPRIA_NATS__USER=service,
        CYPRIA_NATS__PASSWORD=server.embedded.passwords[service],
        CYPRIA_DATA_DIR=str(data_dir),
        CYPRIA_HTTP__PORT="0",
        **extra,
    )
    return subprocess.Popen(
        [sys.executable, "-m", f"services.{service}"], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, HARD)),
    )  # fmt: skip


@pytest.mark.parametrize("service", ["router", "inference", "metrics", "monitor", "alerts"])
async def test_a_service_takes_all_the_files_it_may_and_sigterm_ends_it_with_status_zero(service: str, nats_server: NatsServer, tmp_path: Path) -> None:
    process = start(service, nats_server, tmp_path)
    await eventually(lambda: list((tmp_path / "run").glob(f"{service}.*.json")) or process.poll() is not None, 60)
    soft, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    assert soft == (MAX_FILES if HARD == resource.RLIM_INFINITY else min(HARD, MAX_FILES)), "a few connections, and no more"
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, log[-2000:]
    assert '"stopped"' in log


@pytest.mark.parametrize("service", ["router", "monitor"])
async def test_sigterm_ends_a_service_that_waits_for_a_bus_that_is_away(service: str, nats_server: NatsServer, tmp_path: Path) -> None:
    nats_server.kill()
    process = start(service, nats_server, tmp_path)
    await eventually(lambda: list((tmp_path / "run").glob(f"{service}.*.json")) or process.poll() is not None, 60)
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, log[-2000:]


def test_a_bad_configuration_stops_start_up_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("monitoring: {check_intervall_seconds: 3}\n")
    done = subprocess.run(
        [sys.executable, "-m", "services.monitor", "--config", str(path)],
        env=environment(PYTHONPATH=str(ROOT)), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_CONFIG
    assert f"{path}: monitoring.check_intervall_seconds: unknown key" in done.stderr
