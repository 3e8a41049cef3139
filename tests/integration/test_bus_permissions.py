"""Every user of the bus against every other's subjects, on a real nats-server.

The tables below are written from the contract of the bus, not from `infra.nats.users`: who speaks and who listens on
each subject, who reads each stream and bucket. What is not in a table must be refused.
"""

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from infra.nats import users
from schemas import streams, subjects
from services._runtime.kv import KvMirror
from services._runtime.reader import SequenceReader
from tests.harness import NatsServer, eventually

SERVICES = ("router", "inference", "metrics", "monitor", "alerts")
USERS = (*SERVICES, "caller", "provision")

SPEAK_AND_LISTEN: dict[str, tuple[set[str], set[str]]] = {
    "cypria.request.chat": ({"caller"}, {"router"}),
    "cypria.request.completions": ({"caller"}, {"router"}),
    "cypria.request.embeddings": ({"caller"}, {"router"}),
    "cypria.control.status": ({"caller"}, {"router"}),
    "cypria.infer.m.w1": ({"router"}, {"inference"}),
    "cypria.heartbeat.m.w1": ({"inference"}, {"router"}),
    "cypria.flow.w1": ({"router"}, {"inference"}),
    "cypria.models.plan": ({"router"}, {"inference"}),
    "cypria.query.totals": ({"router", "monitor"}, {"metrics"}),
    "cypria.query.alerts": ({"router", "monitor"}, {"alerts"}),
    "cypria.alerts.test": ({"router"}, {"alerts"}),
    "cypria.alerts.redrive": ({"router"}, {"alerts"}),
    "cypria.verdict.final": ({"router"}, {"monitor"}),
    "cypria.metric.3": ({"router"}, set()),
    "cypria.window.3": ({"metrics"}, {"router"}),
    "cypria.lease.t1": ({"monitor"}, {"router"}),
    "cypria.peer.r1": ({"router"}, {"router"}),
    "cypria.rollback.t1": ({"router", "monitor"}, {"router"}),
    "cypria.event.test.started": ({"router"}, {"router"}),
    "cypria.event.monitoring.changed": ({"router"}, {"router"}),
    "cypria.event.model.state": ({"inference"}, {"router"}),
    "cypria.event.model.progress": ({"inference"}, {"router"}),
    "cypria.event.model.registered": ({"router"}, {"router"}),
    "cypria.event.verdict.decided": ({"monitor"}, {"router"}),
    "cypria.event.alert.sent": (set(), {"router"}),
    "cypria.alert.critical": (set(SERVICES), {"router"}),
    "cypria.audit.router": ({"router"}, set()),
    "cypria.audit.inference": ({"inference"}, set()),
    "cypria.audit.metrics": (set(), set()),
    "cypria.audit.caller": (set(), set()),
    "cypria.dlq.EVENTS.caller": (set(), set()),
    "cypria.dlq.ALERTS.alerts.slack": ({"alerts"}, set()),
    "cypria.dlq.INTEGRATIONS.alerts.dtesn": ({"alerts"}, set()),
    "cypria.alerts.integrations-test": ({"router"}, {"alerts"}),
    "cypria.integration.event.decided": ({"alerts"}, set()),
    "cypria.integration.window.60": ({"alerts"}, set()),
    **{f"cypria.dlq.EVENTS.{service}": ({service}, set()) for service in SERVICES},
    "cypria.unknown": (set(), set()),
    "somebody.elses": (set(), set()),
}

STREAMS: dict[str, set[str]] = {
    "METRICS": {"metrics"},
    "WINDOWS": {"metrics", "monitor", "router", "alerts"},
    "EVENTS": {"metrics", "alerts", "monitor", "router"},
    "ALERTS": {"alerts", "metrics", "router"},
    "AUDIT": {"metrics"},
    "INTEGRATIONS": {"alerts"},
    "DLQ": {"alerts"},
}
BUCKETS: dict[str, tuple[set[str], set[str]]] = {
    "experiments": ({"router"}, {"router", "monitor", "metrics"}),
    "control": ({"router"}, {"router", "monitor", "alerts"}),
    "monitor": ({"monitor"}, {"monitor"}),
    "alert_state": ({"alerts"}, {"alerts"}),
    "secrets": ({"router"}, {"router"}),
    "salts": ({"router"}, {"router"}),
    "erasures": ({"router"}, {"router", "metrics"}),
    "models": ({"router"}, {"router", "inference"}),
    "keys": ({"router"}, {"router"}),
}
ANSWERS: dict[str, set[str]] = {
    "router": {"caller"},
    "inference": {"router"},
    "metrics": {"router", "monitor"},
    "monitor": {"router"},
    "alerts": {"router"},
}
"""Whose questions a service answers, into their inboxes."""
ACKNOWLEDGE: dict[str, set[str]] = {"alerts": {"ALERTS", "EVENTS", "INTEGRATIONS"}}
"""Who consumes by durable consumers."""

ERASE: dict[str, set[str]] = {"router": {"KV_salts", "KV_erasures"}, "metrics": {"METRICS"}}
"""Who may have single messages overwritten, and where."""

READING = (
    "$JS.API.STREAM.INFO.{0}", "$JS.API.CONSUMER.CREATE.{0}", "$JS.API.CONSUMER.CREATE.{0}.name",
    "$JS.API.CONSUMER.INFO.{0}.name", "$JS.API.CONSUMER.MSG.NEXT.{0}.name", "$JS.API.STREAM.MSG.GET.{0}",
    "$JS.API.DIRECT.GET.{0}.subject", "$JS.API.CONSUMER.DELETE.{0}.name",
)  # fmt: skip
MANAGING = (
    "$JS.API.STREAM.CREATE.{0}", "$JS.API.STREAM.UPDATE.{0}", "$JS.API.STREAM.DELETE.{0}", "$JS.API.STREAM.PURGE.{0}",
    "$JS.API.STREAM.SNAPSHOT.{0}", "$JS.API.STREAM.RESTORE.{0}",
    "$JS.SNAPSHOT.ACK.{0}.x.1.1", "$JS.SNAPSHOT.RESTORE.{0}.x",
    "$JS.API.STREAM.LEADER.STEPDOWN.{0}", "$JS.API.CONSUMER.PAUSE.{0}.name",
    "$JS.API.CONSUMER.DURABLE.CREATE.{0}.name",
)  # fmt: skip
GLOBAL = ("$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.INFO", "$JS.API.META.LEADER.STEPDOWN")


class Client:
    """One user, and what the server refused it."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.refused: set[str] = set()
        self.received: defaultdict[str, set[str]] = defaultdict(set)
        self.nc = nats.NATS()

    async def connect(self, server: NatsServer) -> "Client":
        await self.nc.connect(
            server.url, user=self.user, password=server.embedded.passwords[self.user], error_cb=self._error,
            inbox_prefix=f"_INBOX.{self.user}", allow_reconnect=False,
        )  # fmt: skip
        return self

    async def may_publish(self, subject: str, payload: bytes = b"") -> bool:
        await self.nc.publish(subject, payload)
        return await self._allowed(subject)

    async def may_subscribe(self, subject: str) -> bool:
        async def take(message: Any) -> None:
            self.received[message.subject].add(message.data.decode())

        subscription = await self.nc.subscribe(subject, cb=take)
        allowed = await self._allowed(subject)
        if not allowed:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        return allowed

    async def _allowed(self, subject: str) -> bool:
        """The server reports a violation before it answers a PING that came after the cause.

        nats-py writes a PING past what it has buffered, so only the second one is sure to come after it.
        """
        await self.nc.flush(30)
        await self.nc.flush(30)
        refused = any(f'"{subject.lower()}"' in error for error in self.refused)
        self.refused.clear()
        return not refused

    async def _error(self, exc: Exception) -> None:
        assert "permissions violation" in str(exc).lower(), exc
        self.refused.add(str(exc).lower())


@pytest.fixture
async def clients(nats_server: NatsServer) -> AsyncIterator[dict[str, Client]]:
    everybody = {user: await Client(user).connect(nats_server) for user in USERS}
    try:
        yield everybody
    finally:
        for client in everybody.values():
            await client.nc.close()


def test_every_user_pattern_stream_and_bucket_is_tried_with_every_other() -> None:
    """What is new stands in these tables, or nothing below has tried it."""
    assert set(USERS) == set(users.USERS)
    assert set(STREAMS) == {stream.name for stream in streams.STREAMS}
    assert set(BUCKETS) == {bucket.name for bucket in streams.BUCKETS}
    assert set(subjects.PATTERNS) <= {subjects.pattern_of(subject) for subject in SPEAK_AND_LISTEN}
    for user in USERS:
        allowed = users.permissions(user)
        for pattern in (*allowed.publish, *allowed.subscribe):
            tried = [subject for subject in SPEAK_AND_LISTEN if _covers(pattern, subject)]
            assert tried or not pattern.startswith("cypria."), f"{pattern} of {user}"


def _covers(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, given = wanted[:-1], given[: len(wanted) - 1]
    return len(wanted) == len(given) and all(one in {"*", other} for one, other in zip(wanted, given, strict=True))


async def test_everybody_speaks_and_listens_only_on_their_own_subjects(
    clients: dict[str, Client], nats_server: NatsServer
) -> None:
    for user, client in clients.items():
        allowed = {subject for subject in SPEAK_AND_LISTEN if await client.may_subscribe(subject)}
        assert allowed == {s for s, (_, listeners) in SPEAK_AND_LISTEN.items() if user in listeners}, user
    for user, client in clients.items():
        allowed = {s for s in SPEAK_AND_LISTEN if await client.may_publish(s, user.encode())}
        assert allowed == {s for s, (speakers, _) in SPEAK_AND_LISTEN.items() if user in speakers}, user
    for subject, (speakers, listeners) in SPEAK_AND_LISTEN.items():
        for user in listeners:
            await eventually(lambda c=clients[user], s=subject, who=speakers: c.received[s] == who)
    await _stored_are_only_the_speakers(nats_server)


async def _stored_are_only_the_speakers(server: NatsServer) -> None:
    expected = {
        subject: len(speakers)
        for subject, (speakers, _) in SPEAK_AND_LISTEN.items()
        if speakers and subject.split(".")[1] in {
            "metric", "window", "rollback", "event", "alert", "audit", "integration", "dlq"
        }
    }
    admin = await server.connect("provision")
    stored: dict[str, int] = {}
    for stream in STREAMS:
        info = await admin.jetstream(timeout=30).stream_info(stream, subjects_filter=">")
        stored |= info.state.subjects or {}
    await admin.close()
    assert stored == expected


@pytest.mark.parametrize(
    "pattern", [">", "cypria.>", "cypria.*", "cypria.*.*", "$JS.>", "$JS.API.>", "$KV.>", "$SYS.>",
                "$SYS.REQ.SERVER.PING", "_INBOX.>", "_INBOX.*.x", "$JS.EVENT.ADVISORY.>", "$O.>"],
)  # fmt: skip
async def test_nobody_listens_to_what_is_wider_than_their_own(clients: dict[str, Client], pattern: str) -> None:
    assert [user for user, client in clients.items() if await client.may_subscribe(pattern)] == []


async def test_questions_about_alerts_never_reach_metrics(clients: dict[str, Client]) -> None:
    metrics, router = clients["metrics"], clients["router"]
    assert not await metrics.may_subscribe("cypria.query.alerts")
    for pattern in ("cypria.query.*", "cypria.query.>"):
        await metrics.may_subscribe(pattern)
    for subject in ("cypria.query.alerts", "cypria.query.history"):
        await router.may_publish(subject, b"?")
    await eventually(lambda: metrics.received["cypria.query.history"])
    assert not metrics.received["cypria.query.alerts"]


async def test_inboxes_are_private_and_only_those_who_answer_write_into_them(clients: dict[str, Client]) -> None:
    for user, client in clients.items():
        heard = {owner for owner in USERS if await client.may_subscribe(f"_INBOX.{owner}.x")}
        assert heard == {user}
        written = {owner for owner in USERS if await client.may_publish(f"_INBOX.{owner}.x", b"x")}
        assert written == ANSWERS.get(user, set()), user


async def test_a_queue_group_is_no_way_around(clients: dict[str, Client]) -> None:
    caller = clients["caller"]
    await caller.nc.subscribe("cypria.control.*", queue="routers")
    assert not await caller._allowed("cypria.control.*") or not await caller.may_subscribe("cypria.control.*")


async def test_streams_are_read_only_by_their_readers_and_managed_by_no_service(clients: dict[str, Client]) -> None:
    for user, client in clients.items():
        if user == "provision":
            continue
        for stream, readers in STREAMS.items():
            for pattern in READING:
                allowed = await client.may_publish(pattern.format(stream))
                assert allowed == (user in readers), f"{user} {pattern.format(stream)}"
            for pattern in MANAGING:
                assert not await client.may_publish(pattern.format(stream)), f"{user} {pattern.format(stream)}"
            erases = await client.may_publish(f"$JS.API.STREAM.MSG.DELETE.{stream}")
            assert erases == (stream in ERASE.get(user, set())), f"{user} erases from {stream}"
            ack = await client.may_publish(f"$JS.ACK.{stream}.name.1.1.1.1.0", b"+NXT")
            assert ack == (stream in ACKNOWLEDGE.get(user, set())), f"{user} acknowledges {stream}"
            listing = await client.may_publish(f"$JS.API.CONSUMER.LIST.{stream}")
            assert listing == (stream in ACKNOWLEDGE.get(user, set())), f"{user} lists consumers of {stream}"
        for subject in GLOBAL:
            assert not await client.may_publish(subject), f"{user} {subject}"


async def test_buckets_are_written_only_by_their_writers_and_read_only_by_their_readers(
    clients: dict[str, Client],
) -> None:
    for user, client in clients.items():
        for bucket, (writers, readers) in BUCKETS.items():
            assert await client.may_publish(f"$KV.{bucket}.k", user.encode()) == (user in writers), f"{user} {bucket}"
            if user == "provision":
                continue
            for pattern in READING:
                allowed = await client.may_publish(pattern.format(f"KV_{bucket}"))
                assert allowed == (user in readers), f"{user} {pattern.format(f'KV_{bucket}')}"
            for pattern in MANAGING:
                assert not await client.may_publish(pattern.format(f"KV_{bucket}")), f"{user} {bucket}"
            erases = await client.may_publish(f"$JS.API.STREAM.MSG.DELETE.KV_{bucket}")
            assert erases == (f"KV_{bucket}" in ERASE.get(user, set())), f"{user} erases from {bucket}"


async def test_a_consumers_deliver_subject_is_no_way_into_a_bucket_or_stream(
    clients: dict[str, Client], nats_server: NatsServer
) -> None:
    async with nats_server.bus("router") as bus:
        kv = await bus.js.key_value("experiments")
        await kv.put("stable", b"ours")
        alerts = clients["alerts"].nc.jetstream(timeout=30)
        await alerts.publish("cypria.alert.info", b"theirs")
        for pattern in ("cypria.window.*", "cypria.event.>"):  # as routers listen for live events
            await clients["router"].may_subscribe(pattern)
        foreign = ("$KV.experiments.stable", "cypria.metric.3", "cypria.window.3", "cypria.event.test.started")
        for number, subject in enumerate(foreign):
            config = ConsumerConfig(name=f"x{number}", deliver_subject=subject, ack_policy=AckPolicy.NONE)
            await alerts.add_consumer("ALERTS", config)
        config = ConsumerConfig(name="control", deliver_subject="_INBOX.alerts.c", ack_policy=AckPolicy.NONE)
        await clients["alerts"].may_subscribe("_INBOX.alerts.c")
        await alerts.add_consumer("ALERTS", config)
        await eventually(lambda: any("theirs" in seen for seen in clients["alerts"].received.values()))
        assert (await kv.get("stable")).value == b"ours"
        assert (await bus.js.stream_info("KV_experiments")).state.messages == 1
        for stream in ("METRICS", "WINDOWS", "EVENTS"):
            admin = clients["provision"].nc.jetstream(timeout=30)
            assert (await admin.stream_info(stream)).state.messages == 0, stream


async def test_what_is_a_services_own_works_from_end_to_end(nats_server: NatsServer) -> None:
    writers = {"METRICS": ("router", "cypria.metric.0"), "WINDOWS": ("metrics", "cypria.window.0"),
               "EVENTS": ("router", "cypria.event.test.started"), "ALERTS": ("monitor", "cypria.alert.info"),
               "AUDIT": ("inference", "cypria.audit.inference"),
               "INTEGRATIONS": ("alerts", "cypria.integration.event.started")}  # fmt: skip
    for stream, (writer, subject) in writers.items():
        async with nats_server.bus(writer) as bus:
            await bus.js.publish(subject, writer.encode())
        for reader in STREAMS[stream]:
            async with nats_server.bus(reader) as bus:
                messages = SequenceReader(bus, stream)
                await messages.open()
                assert [m.data async for m in messages.catch_up()] == [writer.encode()], f"{reader} reads {stream}"
                await messages.close()
    for bucket, (bucket_writers, readers) in BUCKETS.items():
        for writer in bucket_writers:
            async with nats_server.bus(writer) as bus:
                kv = await bus.js.key_value(bucket)
                await kv.put("k", writer.encode())
                assert (await kv.get("k")).value == writer.encode()
        for reader in readers:
            async with nats_server.bus(reader) as bus:
                mirror = KvMirror(bus, bucket)
                await mirror.start()
                assert "k" in mirror.entries, f"{reader} watches {bucket}"
                await mirror.stop()


async def test_questions_are_answered_across_users(nats_server: NatsServer) -> None:
    pairs = [("caller", "cypria.control.status", "router"), ("router", "cypria.query.totals", "metrics"),
             ("monitor", "cypria.query.totals", "metrics"), ("router", "cypria.query.alerts", "alerts"), ("router", "cypria.alerts.test", "alerts"),
             ("router", "cypria.verdict.status", "monitor"), ("router", "cypria.models.list", "inference"),
             ("router", "cypria.infer.m.w1", "inference"), ("caller", "cypria.request.chat", "router")]  # fmt: skip
    for asker, subject, answerer in pairs:
        one, two = await nats_server.connect(asker), await nats_server.connect(answerer)

        async def reply(message: Any) -> None:
            await message.respond(b"yes")

        await two.subscribe(subject, cb=reply)
        await two.flush()
        assert (await one.request(subject, b"?", timeout=30)).data == b"yes", f"{asker} asks {answerer}"
        await one.close()
        await two.close()


@pytest.mark.parametrize(
    "credentials", [{}, {"user": "router"}, {"user": "router", "password": "guess"}, {"user": "root", "password": ""},
                    {"token": "x"}],
)  # fmt: skip
async def test_nobody_gets_in_without_a_users_password(nats_server: NatsServer, credentials: dict[str, str]) -> None:
    async def ignore(_exc: Exception) -> None:
        """The refusal is raised by connect too."""

    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await nats.connect(nats_server.url, allow_reconnect=False, error_cb=ignore, **credentials)


async def test_every_user_has_a_password_of_its_own_that_only_the_owner_of_the_data_dir_reads(
    nats_server: NatsServer,
) -> None:
    assert len(set(nats_server.embedded.passwords.values())) == len(USERS) == len(nats_server.embedded.passwords)
    assert all(len(password) >= 32 for password in nats_server.embedded.passwords.values())
    folder = nats_server.data_dir / "nats"
    assert folder.stat().st_mode & 0o077 == 0
    for name in ("passwords.json", "nats.conf"):
        assert (folder / name).stat().st_mode & 0o077 == 0
