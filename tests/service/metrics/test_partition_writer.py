"""One partition's writer on a real nats-server: exactly once, whoever dies or comes second."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from schemas import streams, subjects
from schemas.v1.alerts import DeadLetter
from services._runtime.bus import Bus
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_partition_writer import PartitionWriter
from tests.harness import NatsServer, eventually
from tests.service.metrics.support import TEST, Producer, expected, folded_up_to, stored_windows, totals


@contextlib.asynccontextmanager
async def running(bus: Bus, partition: int, name: str) -> AsyncIterator[PartitionWriter]:
    writer = PartitionWriter(bus, partition, name, lambda: {TEST}, Alarms(bus))
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_facts_become_windows_with_an_empty_one_every_second(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 3, 1)
    async with nats_server.bus("metrics") as bus, running(bus, 3, "m1"):
        for _ in range(20):
            await producer.send(7)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        before = len(await stored_windows(nats_server))

        async def two_more() -> bool:
            return len(await stored_windows(nats_server)) >= before + 2

        await eventually(two_more)
    windows = [w for _, w in await stored_windows(nats_server)]
    assert totals(windows) == expected([producer])
    assert windows[-1].cells == []
    assert windows[-1].watermark == windows[-2].watermark
    assert {w.partition for w in windows} == {3}
    await nc.close()


async def test_a_restarted_writer_goes_on_after_its_watermark_and_knows_the_units(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 0, 2)
    for life in range(4):
        async with nats_server.bus("metrics") as bus, running(bus, 0, f"m{life}"):
            for _ in range(10):
                await producer.send(20)
            await eventually(lambda: folded_up_to(nats_server, [producer]))
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await nc.close()


async def test_of_two_writers_one_writes_and_the_other_takes_over_when_it_stops(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 1, 3)
    async with contextlib.AsyncExitStack() as stack:
        writers = {}
        for name in ("first", "second"):
            bus = await stack.enter_async_context(nats_server.bus("metrics"))
            own = await stack.enter_async_context(contextlib.AsyncExitStack())
            writers[name] = (await own.enter_async_context(running(bus, 1, name)), own)
            for _ in range(40):
                await producer.send(10)
                await asyncio.sleep(0.03)

        def active() -> list[str]:
            return [name for name, (writer, _) in writers.items() if writer.writing]

        await eventually(lambda: len(active()) == 1)
        assert [writer.missing() for writer, _ in writers.values()] == [None, None]
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        (name,) = active()
        await writers.pop(name)[1].aclose()
        await producer.send(10)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        assert active() == [{"first": "second", "second": "first"}[name]]
    windows = [w for _, w in await stored_windows(nats_server)]
    assert totals(windows) == expected([producer])
    assert {w.writer for w in windows} == {"first", "second"}
    await nc.close()


async def test_a_batch_sent_again_after_the_servers_own_window_counts_once(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    js = nc.jetstream()
    producer = Producer(nc, 2, 4)
    await producer.send(5)
    again = await producer_bytes(nats_server, 2)
    async with nats_server.bus("metrics") as bus, running(bus, 2, "m1"):
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        await js.publish(subjects.metric(2), again)
        await producer.send(5)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await nc.close()


async def producer_bytes(server: NatsServer, partition: int) -> bytes:
    nc = await server.connect("metrics")
    message = await nc.jetstream().get_msg(streams.METRICS.name, subject=subjects.metric(partition))
    await nc.close()
    return message.data or b""


async def test_poison_goes_to_the_dlq_with_its_reason_and_stops_nothing(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    js = nc.jetstream()
    producer = Producer(nc, 4, 5)
    async with nats_server.bus("metrics") as bus, running(bus, 4, "m1") as writer:
        await producer.send(5)
        for poison in (b"{", b"\xff\xfe", b'{"router_epoch":"r1-1","partition":5,"n":7}', b""):
            await js.publish(subjects.metric(4), poison)
        await producer.send(5)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        assert writer.writing
    windows = [w for _, w in await stored_windows(nats_server)]
    assert totals(windows) == expected([producer])
    provision = await nats_server.connect("provision")
    js = provision.jetstream()
    letters = [
        DeadLetter.model_validate_json((await js.get_msg(streams.DLQ.name, seq)).data or b"") for seq in range(1, 5)
    ]
    assert [letter.sequence for letter in letters] == [2, 3, 4, 5]
    assert "partition 5" in letters[2].reason
    assert {letter.consumer for letter in letters} == {"metrics"}
    await provision.close()
    await nc.close()


async def test_it_goes_on_after_the_server_was_killed(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 5, 6)
    async with nats_server.bus("metrics") as bus, running(bus, 5, "m1"):
        for _ in range(3):
            for _ in range(10):
                await producer.send(10)
            nats_server.kill()
            nats_server.start()
        await producer.send(10)
        await eventually(lambda: folded_up_to(nats_server, [producer]), 30)
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await nc.close()


async def test_a_replaced_facts_stream_is_read_from_its_beginning(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 6, 7)
    provision = await nats_server.connect("provision")
    async with nats_server.bus("metrics") as bus, running(bus, 6, "m1"):
        for _ in range(5):
            await producer.send(10)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
    await provision.jetstream().delete_stream(streams.METRICS.name)
    await nats_server.provision()
    async with nats_server.bus("metrics") as bus, running(bus, 6, "m2"):
        await producer.send(10)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await provision.close()
    await nc.close()
