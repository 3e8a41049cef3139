"""All streams and buckets into a folder and back, over the server's own protocol and as the user `provision`."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from infra.nats.backup import ORDER
from schemas import streams
from services._runtime.reader import SequenceReader, life_of
from tests.harness import NatsServer, environment, eventually
from tests.system import ROOT


async def copy(server: NatsServer, *arguments: str) -> "subprocess.CompletedProcess[str]":
    own = {
        "CYPRIA_NATS__SERVERS": f'["{server.url}"]', "CYPRIA_NATS__USER": "provision",
        "CYPRIA_NATS__PASSWORD": server.embedded.passwords["provision"], "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "infra.nats.backup", *arguments],
        env=environment(**own), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_everything_is_in_it_and_positions_come_before_what_they_point_into() -> None:
    everything = {stream.name for stream in streams.STREAMS} | {f"KV_{bucket.name}" for bucket in streams.BUCKETS}
    assert set(ORDER) == everything
    assert len(ORDER) == len(everything)
    for position, where in (("WINDOWS", "METRICS"), ("KV_monitor", "WINDOWS"), ("KV_alert_state", "ALERTS"), ("EVENTS", "ALERTS")):
        assert ORDER.index(position) < ORDER.index(where)


async def state(server: NatsServer) -> dict[str, tuple[Any, ...]]:
    admin = await server.connect("provision")
    js = admin.jetstream(timeout=10)
    infos = [await js.stream_info(name, subjects_filter=">") for name in ORDER]
    found = {i.config.name: (i.config, i.state.last_seq, i.state.subjects, i.state.consumer_count) for i in infos}
    # of buckets nobody keeps a position
    found |= {i.config.name: (*found[i.config.name], life_of(i)) for i in infos if not i.config.name.startswith("KV_")}
    await admin.close()
    return found


async def acknowledged(taken: Any) -> bool:
    return int((await taken.consumer_info()).ack_floor.stream_seq) == 3


async def test_what_was_saved_comes_back_on_an_empty_server(nats_server: NatsServer, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    many = [random.Random(n).randbytes(1 << 20) for n in range(24)]  # more than the server sends without a word from the other side
    async with nats_server.bus("router") as bus:
        for data in many:
            await bus.js.publish("cypria.event.test.started", data)
        await (await bus.js.key_value("keys")).put("k", b"kept")
    async with nats_server.bus("alerts") as bus:
        config = ConsumerConfig(name="alerts-events", durable_name="alerts-events", ack_policy=AckPolicy.EXPLICIT)
        await bus.js.add_consumer("EVENTS", config)
        taken = await bus.js.pull_subscribe_bind("alerts-events", "EVENTS")
        for message in await taken.fetch(3):
            await message.ack()
        await eventually(lambda: acknowledged(taken), 30)
    before = await state(nats_server)
    saved = await copy(nats_server, "save", str(folder))
    assert saved.returncode == 0, saved.stderr
    assert "EVENTS: 24 messages" in saved.stdout
    assert folder.stat().st_mode & 0o077 == 0
    again = await copy(nats_server, "save", str(folder))
    assert (again.returncode, again.stderr) == (1, f"{folder} is there already: name a new folder\n")
    occupied = await copy(nats_server, "restore", str(folder))
    assert occupied.returncode == 1
    assert "the server has ALERTS, AUDIT" in occupied.stderr

    empty = NatsServer(tmp_path / "another")
    empty.start()
    try:
        restored = await copy(empty, "restore", str(folder))
        assert restored.returncode == 0, restored.stderr
        assert await state(empty) == before
        await empty.provision()
        assert await state(empty) == before
        async with empty.bus("router") as bus:
            assert (await (await bus.js.key_value("keys")).get("k")).value == b"kept"
            reader = SequenceReader(bus, "EVENTS", after=1)
            await reader.open(expect_created=before["EVENTS"][-1])
            assert [m.data async for m in reader.catch_up()] == many[1:]
            await reader.close()
        async with empty.bus("alerts") as bus:
            taken = await bus.js.pull_subscribe_bind("alerts-events", "EVENTS")
            [next_one] = await taken.fetch(1)
            assert next_one.data == many[3]
    finally:
        empty.kill()


@pytest.mark.parametrize("lost", ["backup.json", "folder"])
async def test_a_copy_that_is_not_whole_is_refused_before_anything_is_made(nats_server: NatsServer, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "copy"
    if lost == "folder":
        refused = await copy(nats_server, "restore", str(folder))
        assert f"{folder} is no whole copy: it lacks {ORDER[0]}" in refused.stderr
    else:
        assert (await copy(nats_server, "save", str(folder))).returncode == 0
        (folder / "WINDOWS" / lost).unlink()
        refused = await copy(nats_server, "restore", str(folder))
        assert refused.stderr == f"{folder} is no whole copy: it lacks WINDOWS\n"
    assert refused.returncode == 1


def test_without_servers_it_says_where_an_embedded_one_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.nats.backup", "save", str(tmp_path / "copy")], env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "nats.servers is not set: an embedded server is in the data dir" in done.stderr
