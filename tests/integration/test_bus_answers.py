"""What a server answers goes where the asker says: into no stream, into no order, and past those who listen to others."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from schemas import streams
from tests.harness import NatsServer, eventually
from tests.integration.test_bus_permissions import BUCKETS, STREAMS, USERS, Client


@pytest.fixture
async def clients(nats_server: NatsServer) -> AsyncIterator[dict[str, Client]]:
    everybody = {user: await Client(user).connect(nats_server) for user in USERS}
    try:
        yield everybody
    finally:
        for client in everybody.values():
            await client.nc.close()


ANSWERED = {
    "stored": ("{subject}", b"theirs"), "refused": ("{subject}", b"theirs"), "state": ("$JS.API.STREAM.INFO.{stream}", b""),
    "get": ("$JS.API.STREAM.MSG.GET.{stream}", b'{{"seq":1}}'), "direct": ("$JS.API.DIRECT.GET.{stream}", b'{{"seq":1}}'),
    "no such": ("$JS.API.DIRECT.GET.{stream}", b'{{"seq":999}}'), "pull": ("$JS.API.CONSUMER.MSG.NEXT.{stream}.x", b"1"),
    "none to pull": ("$JS.API.CONSUMER.MSG.NEXT.{stream}.x", b'{{"batch":9,"no_wait":true}}'),
    "no pull": ("$JS.API.CONSUMER.MSG.NEXT.{stream}.x", b'{{"batch":"x"}}'),
    "acknowledged": ("$JS.ACK.{stream}.x.1.1.1.1.0", b"+ACK"), "list": ("$JS.API.CONSUMER.LIST.{stream}", b""),
    "consumer": ("$JS.API.CONSUMER.INFO.{stream}.x", b""), "gone": ("$JS.API.CONSUMER.DELETE.{stream}.y", b""),
}  # fmt: skip
"""What a server answers to, in one way or another: an acknowledgement, a stored message, a status, an error."""


async def test_no_answer_of_the_server_gets_into_a_stream_or_changes_one(clients: dict[str, Client], nats_server: NatsServer) -> None:
    """The asker names the subject of the answer, and the server asks nobody whether the asker might publish there."""
    own = {"router": ("EVENTS", "cypria.event.test.started"), "inference": ("KV_models", "cypria.alert.info"),
           "metrics": ("WINDOWS", "cypria.window.0"), "monitor": ("EVENTS", "cypria.event.verdict.decided"),
           "alerts": ("ALERTS", "cypria.alert.info")}  # fmt: skip
    admin = clients["provision"].nc.jetstream(timeout=30)
    async with nats_server.bus("router") as bus:
        for bucket in ("models", "keys"):
            await (await bus.js.key_value(bucket)).put("k", b"ours")
    for user, (stream, subject) in own.items():
        mine = clients[user].nc.jetstream(timeout=30)
        await mine.publish(subject, b"", headers={"Nats-Msg-Id": user})
        for name in ("x", "y"):
            config = ConsumerConfig(name=name, ack_policy=AckPolicy.EXPLICIT)
            await mine.add_consumer(stream, config)

    async def state() -> dict[str, tuple[Any, ...]]:
        names = [*STREAMS, *(f"KV_{bucket}" for bucket in BUCKETS)]
        infos = [await admin.stream_info(name, subjects_filter=">") for name in names]
        return {i.config.name: (str(i.created), i.state.first_seq, tuple(sorted((i.state.subjects or {}).items()))) for i in infos}

    targets = [pattern.replace("*", "0").replace(">", "x.y") for stream in streams.STREAMS for pattern in stream.subjects]
    targets += ["$KV.keys.k", "$KV.experiments.new"]
    targets += [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("DELETE", "PURGE") for stream in ("KV_keys", "AUDIT", "WINDOWS")]
    before = await state()
    for user, (stream, subject) in own.items():
        client, sent = clients[user], 0
        for target in targets:
            for kind, (ask, body) in ANSWERED.items():
                question = ask.format(stream=stream, subject=subject)
                if question == subject:
                    sent += kind == "stored"
                headers = {"Nats-Expected-Last-Sequence": "77"} if kind == "refused" else None
                await client.nc.publish(question, body.replace(b"{{", b"{").replace(b"}}", b"}"), reply=target, headers=headers)
        await client.nc.flush(30)
        place = "ALERTS" if user == "inference" else stream

        awaited = dict(before[place][2]).get(subject, 0) + sent

        async def arrived(place: str = place, subject: str = subject, awaited: int = awaited) -> bool:
            return dict((await state())[place][2]).get(subject, 0) == awaited

        await eventually(arrived)
        await clients["provision"].nc.flush(30)
        client.refused.clear()
        after = await state()
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {place}, f"{user}: {changed}"
        before = after


async def test_what_a_stream_holds_is_not_taken_where_only_others_speak(clients: dict[str, Client], nats_server: NatsServer) -> None:
    alerts, heard = clients["alerts"], []
    await alerts.nc.jetstream(timeout=30).publish("cypria.alert.info", b"theirs")
    await alerts.nc.jetstream(timeout=30).add_consumer("ALERTS", ConsumerConfig(name="x", ack_policy=AckPolicy.NONE))
    async with nats_server.bus("router") as bus:

        async def take(message: Any) -> None:
            heard.append(message.data)

        await bus.nc.subscribe("cypria.lease.*", cb=take)
        await bus.nc.flush()
        for question, body in (("$JS.API.DIRECT.GET.ALERTS", b'{"seq":1}'), ("$JS.API.CONSUMER.MSG.NEXT.ALERTS.x", b"1")):
            await alerts.nc.publish(question, body, reply="cypria.lease.t1")
        await alerts.nc.flush()
        await alerts.nc.jetstream(timeout=30).stream_info("ALERTS")
        await clients["monitor"].nc.publish("cypria.lease.t1", b"ours")
        await eventually(lambda: b"ours" in heard)
    assert heard == [b"ours"]
