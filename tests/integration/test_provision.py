"""`cypria provision` as an operator runs it: once, twice, and without a server to talk to."""

import signal
import subprocess
import sys
from pathlib import Path

from schemas import streams
from services._runtime.provision import provision_bus
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


async def test_streams_from_before_there_were_accounts_are_taken_over(nats_server: NatsServer) -> None:
    async with nats_server.bus("router") as bus:
        await bus.js.publish("cypria.event.test.started", b"before")
        await (await bus.js.key_value("keys")).put("k", b"before")
    nats_server.kill(signal.SIGTERM)
    stores = nats_server.data_dir / "nats" / "store" / "jetstream"
    (stores / "STREAMS").rename(stores / "$G")
    again = NatsServer(nats_server.data_dir)
    again.start()
    try:
        async with again.bus("router") as bus:
            assert (await (await bus.js.key_value("keys")).get("k")).value == b"before"
            await bus.js.publish("cypria.event.test.started", b"after")
            assert (await bus.js.stream_info("EVENTS")).state.messages == 2
    finally:
        again.kill()


async def test_nothing_outlives_the_retention_whatever_it_was_before(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("provision")
    js = nc.jetstream(timeout=30)

    async def ages() -> dict[str, float]:
        names = [stream.name for stream in streams.STREAMS] + [f"KV_{streams.ALERT_STATE.name}"]
        return {name: float((await js.stream_info(name)).config.max_age or 0) for name in names}

    before = await ages()
    declared = {stream.name: stream.max_age_s for stream in streams.STREAMS}
    assert before == {name: min(age, 90 * streams.DAY) for name, age in declared.items()} | {"KV_alert_state": 30 * streams.DAY}
    await provision_bus(js, replicas=1, retention_days=2)
    assert set((await ages()).values()) == {2 * streams.DAY}
    await provision_bus(js, replicas=1, retention_days=90)
    assert await ages() == before
    await nc.close()


def test_without_servers_it_says_what_to_set() -> None:
    done = provision()
    assert done.returncode == 78
    assert "nats.servers is not set" in done.stderr
