"""The runtime's mirrors and readers against a server that is killed under them."""

import asyncio
import json

import pytest
from faststream.nats import NatsMessage, NatsResponse
from nats.aio.msg import Msg

from schemas import subjects
from services._runtime.bus import compare_and_set, make_broker, publish_durable
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


async def test_a_question_whose_answer_is_wanted_outside_an_inbox_is_not_answered(nats_server: NatsServer) -> None:
    asked: list[bytes] = []
    broker = make_broker(nats_server.settings("metrics"), "metrics")

    @broker.subscriber(subjects.query("totals"))
    async def answer(message: NatsMessage) -> NatsResponse:
        asked.append(message.body)
        return NatsResponse(b"mine")

    await broker.start()
    router = await nats_server.connect("router")
    for reply in ("cypria.window.0", "cypria.alert.info", "$KV.experiments.k", "$JS.ACK.WINDOWS.x.1.1.1.1.0", "_INBOXES.router"):
        await router.publish(subjects.query("totals"), b"theirs", reply=reply)
    assert (await router.request(subjects.query("totals"), b"proper", timeout=30)).data == b"mine"
    assert asked == [b"proper"]
    admin = await nats_server.connect("provision")
    for stream in ("WINDOWS", "ALERTS", "KV_experiments"):
        assert (await admin.jetstream(timeout=30).stream_info(stream)).state.messages == 0
    for nc in (router, admin):
        await nc.close()
    await broker.stop()


@pytest.mark.parametrize("head", [b"NATS/1.0\r\n\r\n", b"NATS/1.0 404 No Messages\r\n\r\n", b"NATS/1.0 999\r\n\r\n", b"\x00\r\n\r\n",
                                  b"NATS/1.0\r\nno colon\r\n\r\n", b"NATS/1.0\r\nA: \xff\r\n\r\n"])  # fmt: skip
async def test_no_headers_of_a_sender_stop_those_who_read(nats_server: NatsServer, head: bytes) -> None:
    port = int(nats_server.url.rsplit(":", 1)[1])
    connect = {"user": "router", "pass": nats_server.embedded.passwords["router"], "headers": True, "verbose": False}
    async with nats_server.bus("metrics") as bus, nats_server.bus("router") as writer:
        heard: list[bytes] = []

        async def take(message: Msg) -> None:
            heard.append(message.data)

        await bus.nc.subscribe(subjects.query("totals"), cb=take)
        await bus.nc.flush()
        stream, out = await asyncio.open_connection("127.0.0.1", port)
        out.write(f"CONNECT {json.dumps(connect)}\r\n".encode())
        for subject in (subjects.metric(0), subjects.query("totals")):
            out.write(f"HPUB {subject} {len(head)} {len(head) + 3}\r\n".encode() + head + b"odd\r\n")
        out.write(b"PING\r\n")
        await out.drain()
        async with asyncio.timeout(60):
            while await stream.readline() != b"PONG\r\n":
                pass
        out.close()
        await publish_durable(writer.js, subjects.metric(0), b"next")
        await writer.nc.publish(subjects.query("totals"), b"next")
        reader = SequenceReader(bus, "METRICS", subjects.metric(0))
        await reader.open()
        got: list[StreamMessage] = []
        await _until(reader, got, 2)
        assert [message.data for message in got] == [b"odd", b"next"]
        await eventually(lambda: heard == [b"odd", b"next"])
        assert bus.generation == 1, "the connection was not lost"
        await reader.close()
