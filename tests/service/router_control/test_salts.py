"""A salt for each test, on a real nats-server and several routers: there before the test, gone after it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from schemas.v1.common import unix_ms
from schemas.v1.units import Tombstone
from services.router.domain.salts import ORPHANED_MS
from tests.harness import NatsServer, contents, eventually
from tests.service.router_control.sides import Side, side, stream_messages

HOUR = 3_600_000
YEAR = 366 * 24 * HOUR


def version(router: Side, test_id: str) -> int:
    entry = router.control.experiments.by_id(test_id)
    assert entry is not None
    return entry.unit_salt_version


def held(router: Side) -> dict[str, bytes]:
    return {salt.test_id: salt.salt for salt in router.control.parts.salts.all()}


def stored(server: NatsServer, raw: bytes) -> list[Path]:
    """Files of the server that hold these bytes, as they are or in hex."""
    files = dict(contents(server.data_dir / "nats"))
    assert files
    return [path for path, held in files.items() if any(form in held for form in (raw, raw.hex().encode()))]


async def destroyed(server: NatsServer) -> list[str]:
    """Tests whose salt is said to be gone, by the audit."""
    records = [json.loads(m.data)["data"] for m in await stream_messages(server, "metrics", "AUDIT", "cypria.audit.*")]
    return [record["test_id"] for record in records if record["action"] == "unit-salt-destroyed"]


async def test_every_test_has_a_salt_of_its_own_and_routers_have_it_before_they_know_the_test(
    nats_server: NatsServer,
) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        unsalted: list[str] = []
        two.control.experiments.on_change(
            lambda test: unsalted.append(test.test_id) if two.control.parts.salts.key(test.unit_salt_version) is None else None
        )
        tests = []
        for _ in range(10):
            tests.append(await one.start_test())
            await eventually(lambda test=tests[-1]: two.control.experiments.by_id(test))
            of = version(one, tests[-1])
            key = await eventually(lambda of=of: two.control.parts.salts.key(of))
            assert key == one.control.parts.salts.key(of) != b"pepper"
            await one.post("/rollback")
        assert len(set(held(two).values())) == len(tests)
        # Where the watch of the tests was ahead of that of the salts, the salt was fetched.
        await eventually(lambda: not two.control.parts.salts._fetching)
        assert set(held(two)) == set(held(one)) == set(tests)
        assert set(unsalted) <= set(tests)
    async with side(nats_server) as three:  # a router that starts has all salts before it is ready
        assert set(held(three)) == set(tests)


async def test_a_salt_that_only_the_bucket_has_is_fetched_with_the_test(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        await two.control.parts.salts._mirror.stop()  # as while its watch is being renewed
        test_id = await one.start_test()
        await eventually(lambda: two.control.experiments.by_id(test_id))
        of = version(one, test_id)
        assert await eventually(lambda: two.control.parts.salts.key(of)) == one.control.parts.salts.key(of)


async def test_a_start_that_is_refused_leaves_no_salt(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        test_id = await router.start_test()
        replies = await asyncio.gather(
            *(router.call("POST", "/start", json={"model_a": "stable", "model_b": "canary"}) for _ in range(5))
        )
        assert {reply.status_code for reply in replies} == {409}
        assert set(held(router)) == {test_id}
        # One whose router died before it wrote the test goes when it is surely not being written any more.
        assert HOUR > ORPHANED_MS
        await router.control.parts.salts.make("ab_test_orphan")
        now = router.control.parts.salts.all()[-1].created_ms
        await router.control.forgetter.look(now + HOUR - 1)
        assert set(held(router)) == {test_id, "ab_test_orphan"}
        await router.control.forgetter.look(now + HOUR)
        assert set(held(router)) == {test_id}


async def test_the_salt_of_an_ended_test_is_destroyed_after_the_grace_and_no_byte_of_it_is_left(
    nats_server: NatsServer,
) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        live = await one.start_test(model_a="other")
        first = await one.start_test()
        salt = held(one)[first]
        await one.post("/rollback", {"test_id": first})
        ended = one.control.experiments.by_id(first).ended_ms
        second = await one.start_test()  # the entry of the first is gone, its result is kept in the second's
        assert stored(nats_server, salt)
        for router in (one, two):
            await eventually(lambda router=router: set(held(router)) == {first, second, live})
            await router.control.forgetter.look(ended + HOUR - 1)
        assert set(held(one)) == {first, second, live}
        await asyncio.gather(*(router.control.forgetter.look(ended + HOUR) for router in (one, two)))
        assert set(held(one)) == set(held(two)) == {second, live}
        assert not stored(nats_server, salt)
        assert one.control.parts.salts.key(version(one, second)) is not None
        await asyncio.gather(*(router.control.forgetter.look(ended + YEAR) for router in (one, two)))
        assert set(held(one)) == set(held(two)) == {second, live}  # they run
        await eventually(lambda: destroyed(nats_server))
        assert await destroyed(nats_server) == [first]
    nats_server.kill()
    nats_server.start()
    async with side(nats_server) as three:
        assert set(held(three)) == {second, live}
        assert not stored(nats_server, salt)


async def test_salts_outlive_a_killed_nats_server_and_go_by_themselves(nats_server: NatsServer) -> None:
    less: dict[str, Any] = {"forget_s": 0.1, "answer_s": 2, "privacy": {"unit_salt_grace_minutes": 0}}
    async with side(nats_server, **less) as one, side(nats_server, **less) as two:
        test_id = await one.start_test()
        await eventually(lambda: set(held(two)) == {test_id})
        nats_server.kill()
        await eventually(lambda: not one.bus.connected and not two.bus.connected)
        nats_server.start()
        await eventually(lambda: one.bus.connected and two.bus.connected)
        assert set(held(one)) == set(held(two)) == {test_id}
        await one.post("/rollback")
        await eventually(lambda: not held(one) and not held(two))
        again = await two.start_test()
        assert set(held(two)) == {again}


async def revisions(server: NatsServer, subject: str) -> list[bytes]:
    """Everything that the bucket holds under a key, earlier revisions included."""
    return [message.data for message in await stream_messages(server, "router", "KV_experiments", subject)]


async def test_old_tests_leave_the_experiments_with_all_their_revisions(nats_server: NatsServer) -> None:
    day = 24 * HOUR
    async with side(nats_server, privacy={"retention_days": 2}) as one, side(nats_server) as two:
        first = await one.start_test()
        await one.call("PATCH", "/traffic-split", json={"traffic_split_percent": 20})
        await one.post("/rollback")
        second = await one.start_test()
        await one.post("/rollback")
        live = await one.start_test(model_a="other")
        entries = one.control.experiments
        await eventually(lambda: not any(entry.outbox for entry in entries.entries()))
        ended = {r.test_id: unix_ms(r.end_time) for r in entries.results()}
        assert set(ended) == {first, second}

        async def kept(of: str) -> bool:
            return any(of.encode() in raw for raw in await revisions(nats_server, "$KV.experiments.>"))

        await one.control.forgetter.look(ended[first] + 2 * day - 1)
        assert await kept(first)
        await one.control.forgetter.look(ended[first] + 2 * day)
        if ended[first] != ended[second]:
            assert not await kept(first)
            assert await kept(second)
        await eventually(lambda: len(two.control.experiments.results()) <= 1)
        await asyncio.gather(*(router.control.forgetter.look(ended[second] + 2 * day) for router in (one, one)))
        assert not await kept(second)
        for router in (one, two):
            await eventually(lambda router=router: [e.test_id for e in router.control.experiments.entries()] == [live])
        assert one.control.experiments.current("other").test_id == live
        again = await two.start_test()
        await eventually(lambda: one.control.experiments.by_id(again))


async def test_a_test_that_begins_while_its_predecessor_is_forgotten_is_not_lost(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        for _ in range(10):
            old = await one.start_test()
            await one.post("/rollback")
            await eventually(lambda old=old: not one.control.experiments.by_id(old).outbox)
            ended = one.control.experiments.by_id(old).ended_ms
            started, _ = await asyncio.gather(
                two.start_test(), one.control.experiments.forget("stable", ended + YEAR, 90 * 24 * HOUR)
            )
            (entry,) = await one.control.experiments.fresh()
            assert (entry.test_id, entry.live) == (started, True)
            await eventually(lambda started=started: one.control.experiments.by_id(started))
            await one.post("/rollback")
            await eventually(lambda: not two.control.experiments.live())


async def test_tombstones_are_known_everywhere_and_go_with_the_salt(nats_server: NatsServer) -> None:
    async with side(nats_server) as one, side(nats_server) as two:
        test_id = await one.start_test()
        unit = 0x5EED_CAFE_5EED_CAFE
        stone = Tombstone(test_id=test_id, unit=f"{unit:016x}", at_ms=5)
        assert await one.control.parts.erasures.erase(stone) == stone
        assert await two.control.parts.erasures.erase(stone.model_copy(update={"at_ms": 9})) == stone  # the first stands
        for router in (one, two):
            await eventually(lambda router=router: router.path.erased == [(test_id, unit)])
            assert unit in router.control.parts.erasures.of(test_id)
        await one.control.forgetter.look(2**42)
        assert unit in one.control.parts.erasures.of(test_id)
        await one.post("/rollback")
        ended = one.control.experiments.by_id(test_id).ended_ms
        await eventually(lambda: not two.control.experiments.by_id(test_id).live)
        for router in (one, two):
            await router.control.forgetter.look(ended + HOUR)
            assert not router.control.parts.erasures.of(test_id)
        files = contents(nats_server.data_dir / "nats")
        assert not [path for path, held in files if path.suffix == ".blk" and f"{unit:016x}".encode() in held]
