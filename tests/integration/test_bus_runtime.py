"""The runtime's mirrors and readers against a server that is killed under them."""

from schemas import subjects
from services._runtime.bus import compare_and_set, publish_durable
from services._runtime.kv import KvMirror
from services._runtime.reader import SequenceReader, StreamMessage
from tests.harness import NatsServer, eventually


async def test_a_mirror_survives_the_servers_death(nats_server: NatsServer) -> None:
    async with nats_server.bus("router") as bus:
        mirror = KvMirror(bus, "experiments")
        await mirror.start()
        kv = await bus.js.key_value("experiments")
        await compare_and_set(kv, "k", lambda _old: b"1")
        await eventually(lambda: mirror.entries.get("k", (None,))[0] == b"1")
        nats_server.kill()
        nats_server.start()
        await eventually(lambda: bus.connected)
        await compare_and_set(kv, "k", lambda _old: b"2")
        await eventually(lambda: mirror.entries["k"][0] == b"2")
        await mirror.stop()


async def test_compare_and_set_loses_no_update(nats_server: NatsServer) -> None:
    import asyncio

    async with nats_server.bus("router") as one, nats_server.bus("router") as two:
        buckets = [await bus.js.key_value("experiments") for bus in (one, two)]

        async def count(kv: object) -> None:
            for _ in range(30):
                await compare_and_set(kv, "n", lambda old: str(int(old or b"0") + 1).encode())

        await asyncio.gather(*(count(kv) for kv in buckets))
        assert (await buckets[0].get("n")).value == b"60"
        mirror = KvMirror(two, "experiments")
        await mirror.start()
        for kv in buckets:  # what is deleted is as if it had never been, and what comes after it counts
            assert await compare_and_set(kv, "n", lambda _old: b"") == (None, 0)
            await eventually(lambda: "n" not in mirror.entries)
            await compare_and_set(kv, "n", lambda old: b"1" if old is None else b"2")
            await eventually(lambda: mirror.entries.get("n", (None,))[0] == b"1")
        await mirror.stop()


async def test_a_reader_gives_each_message_once_across_a_restart(nats_server: NatsServer) -> None:
    async with nats_server.bus("router") as writer, nats_server.bus("metrics") as bus:
        for index in range(100):
            await publish_durable(writer.js, subjects.metric(0), str(index).encode())
        reader = SequenceReader(bus, "METRICS", subjects.metric(0))
        await reader.open()
        got: list[StreamMessage] = []
        await _until(reader, got, 100)
        assert [int(message.data) for message in got] == list(range(100))
        nats_server.kill()
        nats_server.start()
        await publish_durable(writer.js, subjects.metric(0), b"100")
        await _until(reader, got, 101)
        assert [int(message.data) for message in got] == list(range(101))
        later = SequenceReader(bus, "METRICS", subjects.metric(0), after=got[50].sequence)
        await later.open()
        assert [int(message.data) async for message in later.catch_up()] == list(range(51, 101))
        await reader.close()
        await later.close()


async def _until(reader: SequenceReader, got: list[StreamMessage], count: int) -> None:
    async def enough() -> bool:
        got.extend(await reader.fetch(30, 0.5))
        return len(got) >= count

    await eventually(enough)
