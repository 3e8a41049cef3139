"""One partition's writer on a real nats-server: exactly once, whoever dies or comes second."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from nats.js.errors import NotFoundError
from structlog.testing import capture_logs

from schemas import streams, subjects
from schemas.v1.alerts import Alert, DeadLetter
from schemas.v1.windows import Watermark, Window
from services._runtime.bus import Bus
from services._runtime.clock import now_ms
from services.metrics.adapters.nats_alarms import Alarms
from services.metrics.adapters.nats_partition_writer import PartitionWriter
from services.metrics.domain.fold import Fold
from services.metrics.domain.records import FactBatch
from tests.harness import NatsServer, eventually
from tests.service.metrics.support import TEST, Producer, expected, folded_up_to, stored_windows, totals


@contextlib.asynccontextmanager
async def running(bus: Bus, partition: int, name: str) -> AsyncIterator[PartitionWriter]:
    writer = PartitionWriter(bus, partition, name, lambda: {TEST}, Alarms(bus), dict)
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


async def test_verbose_metrics_log_the_figures_of_every_window(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 3, 1)
    with capture_logs() as logged:
        async with nats_server.bus("metrics", logging={"verbose_metrics": True}) as bus, running(bus, 3, "m1"):
            await producer.send(7)
            await eventually(lambda: [line for line in logged if line["event"] == "window"])
    lines = [line for line in logged if line["event"] == "window"]
    assert sum(line["done"] for line in lines) == sum(cell.done for _, window in await stored_windows(nats_server) for cell in window.cells)
    assert {line["test_id"] for line in lines} == {TEST}
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

        await eventually(lambda: len(active()) == 1 and not any(writer.missing() for writer, _ in writers.values()))
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        (name,) = active()
        await writers.pop(name)[1].aclose()
        await producer.send(10)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
        await eventually(lambda: active() == [{"first": "second", "second": "first"}[name]])
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


async def test_a_batch_that_cannot_be_folded_is_put_aside_without_losing_its_neighbours(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in folding is the same as poison: state is read again and the batch left out, with its reason."""
    nc = await nats_server.connect("router")
    producer = Producer(nc, 4, 8)
    original = Fold.fold

    def failing(self: Fold, batch: FactBatch, sequence: int, time_ms: int) -> bool:
        result = original(self, batch, sequence, time_ms)
        if batch.router_epoch == "bad":
            raise OverflowError("too much")
        return result

    monkeypatch.setattr(Fold, "fold", failing)
    bad = Producer(nc, 4, 9, epoch="bad")
    async with nats_server.bus("metrics") as bus, running(bus, 4, "m1"):
        await producer.send(5)
        await bad.send(5)
        await producer.send(5)
        await eventually(lambda: folded_up_to(nats_server, [producer]))
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    provision = await nats_server.connect("provision")
    letter = DeadLetter.model_validate_json((await provision.jetstream().get_msg(streams.DLQ.name, 1)).data or b"")
    assert letter.sequence == 2
    assert "OverflowError: too much" in letter.reason
    await provision.close()
    await nc.close()


async def test_lost_batches_raise_an_alert(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 7, 10)
    async with nats_server.bus("metrics") as bus, running(bus, 7, "m1"):
        await producer.send(5)
        producer.n += 3
        await producer.send(5)
        await eventually(lambda: folded_up_to(nats_server, [producer]))

        async def alert() -> Alert | None:
            try:
                message = await bus.js.get_msg(streams.ALERTS.name, subject=subjects.alert("CRITICAL"))
            except NotFoundError:
                return None
            return Alert.model_validate(json.loads(message.data or b"")["data"])

        found = await eventually(alert)
    assert "3 fact batches of router r1-1 before number 5 of partition 7 never came" in found.message
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await nc.close()


async def test_a_position_that_cannot_be_read_blocks_the_partition_with_the_remedy(nats_server: NatsServer) -> None:
    """A writer's, of another version perhaps: it came behind the fence."""
    async with nats_server.bus("metrics") as bus:
        await bus.js.publish(subjects.window(3), b"not a window", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
        async with running(bus, 3, "m1") as writer:
            await eventually(lambda: "remove that message" in (writer.missing() or ""))
            assert not writer.writing
    assert (await bus_windows(nats_server)) == 1


async def test_what_no_writer_has_stored_is_passed_over_and_changes_no_figure(nats_server: NatsServer) -> None:
    nc = await nats_server.connect("router")
    producer = Producer(nc, 3, 12)
    async with nats_server.bus("metrics") as bus:
        nonsense = (b'{"stream":"WINDOWS","seq":7}', b"{", b"not a window")
        await bus.js.publish(subjects.window(3), nonsense[0])
        async with running(bus, 3, "m1"):
            for data in nonsense:
                await producer.send(5)
                await eventually(lambda: folded_up_to(nats_server, [producer]))
                await bus.js.publish(subjects.window(3), data)
            await producer.send(5)
            await eventually(lambda: folded_up_to(nats_server, [producer]))
        await bus.js.publish(subjects.window(3), nonsense[0])
        await producer.send(5)
        async with running(bus, 3, "m2"):
            await eventually(lambda: folded_up_to(nats_server, [producer]))
    assert totals([w for _, w in await stored_windows(nats_server)]) == expected([producer])
    await nc.close()


async def test_facts_stored_again_under_old_sequences_are_found(nats_server: NatsServer) -> None:
    """After a power cut METRICS may have lost its end and given the same sequences to other batches."""
    nc = await nats_server.connect("router")
    producer = Producer(nc, 3, 11)
    for _ in range(3):
        await producer.send(5)
    async with nats_server.bus("metrics") as bus:
        info = await bus.js.stream_info(streams.METRICS.name)
        for last_seq in (2, 1000):
            watermark = Watermark(stream_created=str(info.created), last_seq=last_seq, last_time_ms=now_ms() - 5000)
            window = Window(partition=3, writer="old", watermark=watermark)
            await bus.js.publish(subjects.window(3), window.model_dump_json().encode())
            before = await bus_windows(nats_server)
            async with running(bus, 3, f"m{last_seq}"):
                await eventually(lambda: folded_up_to(nats_server, [producer]))
            windows = [w for sequence, w in await stored_windows(nats_server) if sequence > before]
            assert totals(windows)["done"] == expected([producer])["done"]
    await nc.close()


async def bus_windows(server: NatsServer) -> int:
    nc = await server.connect("metrics")
    info = await nc.jetstream().stream_info(streams.WINDOWS.name)
    await nc.close()
    return int(info.state.messages)


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
        await eventually(lambda: folded_up_to(nats_server, [producer]))
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
