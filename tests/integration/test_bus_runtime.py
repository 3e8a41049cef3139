import asyncio, signal, pytest
from tests.harness import NatsServer, eventually
from services._runtime.kv import KvMirror
from services._runtime.reader import SequenceReader
from services._runtime.bus import publish_durable, compare_and_set

async def test_kv_mirror_survives_restart(nats_server):
    async with nats_server.bus("router") as bus:
        m = KvMirror(bus, "experiments"); await m.start()
        kv = await bus.js.key_value("experiments")
        await compare_and_set(kv, "k", lambda v: b"1")
        await eventually(lambda: m.entries.get("k", (None,))[0] == b"1")
        nats_server.kill(); nats_server.start()
        await eventually(lambda: bus.connected)
        await compare_and_set(kv, "k", lambda v: b"2")
        await eventually(lambda: m.entries["k"][0] == b"2")
        await m.stop()

async def test_reader(nats_server):
    async with nats_server.bus("router") as w, nats_server.bus("metrics") as r:
        for i in range(100):
            await publish_durable(w.js, "cypria.metric.0", str(i).encode())
        rd = SequenceReader(r, "METRICS", "cypria.metric.0"); await rd.open()
        got=[]
        while len(got)<100: got += await rd.fetch(30, 0.5)
        assert [int(m.data) for m in got]==list(range(100))
        nats_server.kill(); nats_server.start()
        await publish_durable(w.js, "cypria.metric.0", b"100")
        while len(got)<101: got += await rd.fetch(30, 0.5)
        assert int(got[-1].data)==100
        rd2 = SequenceReader(r, "METRICS", "cypria.metric.0", after=50); await rd2.open()
        assert len([m async for m in rd2.catch_up()])==51
        await rd.close(); await rd2.close()
