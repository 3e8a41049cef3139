"""The chain of audit records on the real engine and the real bus: through kill -9, and under every way to touch it."""

import asyncio
import contextlib
import random
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import AlertLevel, TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.query import AuditQuery, AuditReply, AuditVerification, AuditVerifyQuery
from services._runtime.clock import now_ms
from services.metrics.adapters.clickhouse_queries import Questions
from services.metrics.adapters.nats_archive import SHELVES, Archive
from services.metrics.adapters.nats_audit import AuditArchive
from services.metrics.domain import chain
from services.metrics.domain.chain import START, Link
from tests.harness import NatsServer, eventually
from tests.service.metrics.audit_parts import AUDIT, Parts, chained, message
from tests.service.metrics.process import Metrics, ask, seed


async def verified(nc: nats.NATS, **question: Any) -> AuditVerification:
    """The whole check, page by page: the last answer with the sums of all."""
    checked = compared = 0
    cursor = ""
    while True:
        failed, body = await ask(nc, "audit_verify", AuditVerifyQuery(cursor=cursor, **question))
        assert not failed, body
        page = AuditVerification.model_validate_json(body)
        checked, compared = checked + page.checked, compared + page.compared
        if page.complete:
            return page.model_copy(update={"checked": checked, "compared": compared})
        cursor = page.cursor


async def test_one_chain_through_kill_9_with_records_that_come_twice(nats_server: NatsServer, tmp_path: Path) -> None:
    rng = random.Random(seed())
    often = {"audit_checks": {"every_seconds": 1, "full_every_hours": 0.0005}}
    metrics = Metrics(nats_server, tmp_path / "metrics", f"chdb://{tmp_path / 'chdb'}", security=often)
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        nc = await nats_server.connect("router")
        js = nc.jetstream()
        await metrics.ready()
        sent, pins = 0, []
        for _round in range(3):
            for _ in range(40):
                sent += 1
                # Now and then the acknowledgement got lost for longer than the server remembers: once more, no id for it.
                for _ in range(1 + (rng.random() < 0.2)):
                    await js.publish(AUDIT, message(sent))
            await js.publish(AUDIT, b"no record")
            await asyncio.sleep(rng.random() * 0.6)  # the kill comes at any moment of an insert
            metrics.kill()
            await js.publish(AUDIT, message(sent))
            metrics.start()
            await metrics.ready()
            stored = await _stored(nats_server)

            async def chained(stored: int = stored) -> AuditVerification | None:
                found = await verified(nc, limit=37)
                assert found.ok, found.problem
                return found if found.checked == stored else None

            found = await eventually(chained)
            assert found.compared == stored
            pins.append(found.head)
        for pin in pins:
            assert (await verified(nc, head=pin)).ok
        forged = f"{str(pins[0]).split(':')[0]}:{secrets.token_hex(32)}"
        refused = await verified(nc, head=forged)
        assert (refused.ok, refused.problem and refused.problem.kind) == (False, "pinned")
        failed, body = await ask(nc, "audit", AuditQuery(limit=1000))
        assert not failed, body
        shown = AuditReply.model_validate_json(body)
        assert sorted(int(r["request_id"][1:]) for r in shown.records) == list(range(1, sent + 1))
        assert shown.records[0]["before"] == {"traffic_split_percent": sent}
        assert shown.records[0]["after"] == {"x": "é"}
        assert not shown.more
        few = AuditReply.model_validate_json((await ask(nc, "audit", AuditQuery(limit=5)))[1])
        assert (len(few.records), few.more) == (5, True)

        # it has looked for itself, whatever was being written, and found nothing
        def checked() -> bool:
            figures = metrics.get("/metrics")[1]
            ended = re.search(r'^cypria_metrics_audit_checked_timestamp_seconds{what="all"} (\S+)', figures, re.MULTILINE)
            return ended is not None and float(ended[1]) > 0

        await eventually(lambda: asyncio.to_thread(checked), 60, 0.2)
        assert "\ncypria_metrics_audit_touched 0.0\n" in metrics.get("/metrics")[1]
        assert "audit_touched" not in metrics.log()
        await nc.close()


async def _stored(server: NatsServer) -> int:
    nc = await server.connect("metrics")
    try:
        return int((await nc.jetstream().stream_info(streams.AUDIT.name)).state.messages)
    finally:
        await nc.close()


@pytest.fixture
async def parts(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Parts]:
    async with chained(nats_server, tmp_path) as made:
        yield made


def anew(links: list[Link]) -> list[Link]:
    """The hashes of a chain made anew, for whatever its records now say."""
    made: list[Link] = []
    head = START
    for one in links:
        made.append(chain.link(head, one.stream, one.sequence, one.stored_ms, one.record))
        head = made[-1].head
    return made


async def test_every_way_to_touch_the_table_shows(parts: Parts) -> None:
    good = await parts.links()
    assert good == parts.taken
    pinned = f"20:{good[-1].hash}"
    assert await parts.problem(limit=6, head=pinned) is None

    for statement, found in (
        ("UPDATE actor = 'nobody' WHERE sequence = 5", ("changed", 5, 5)),
        ("UPDATE after = '{}' WHERE sequence = 20", ("changed", 20, 20)),
        ("UPDATE status = 403 WHERE sequence = 1", ("changed", 1, 1)),
        ("UPDATE stored_at = stored_at - 1 WHERE sequence = 9", ("changed", 9, 9)),
        ("UPDATE hash = previous WHERE sequence = 20", ("changed", 20, 20)),
        ("UPDATE hash = 'x' WHERE sequence = 0", ("changed", 20, 20)),
        ("DELETE WHERE sequence = 7", ("removed", 7, 7)),
        ("DELETE WHERE sequence BETWEEN 3 AND 6", ("removed", 3, 6)),
        ("DELETE WHERE sequence BETWEEN 1 AND 2", ("front_missing", 1, 2)),
        ("DELETE WHERE sequence BETWEEN 18 AND 20", ("tail_missing", 18, 20)),
        ("DELETE WHERE sequence = 0", ("tail_missing", 1, 20)),
    ):
        await parts.command(statement)
        assert await parts.problem(limit=6) == found, statement
        await parts.put(good)
        assert await parts.problem() is None

    # Put in beside the others, with a hash of its own: a second row of one place takes the first one's.
    forged = chain.link(good[8].head, good[9].stream, 10, good[9].stored_ms, replace(good[9].record, actor="nobody"))
    await parts.engine.write(lambda client: parts.store.add(client, [forged]))
    assert await parts.problem() == ("changed", 10, 11)
    # The whole chain made anew: what AUDIT holds gives it away, and past AUDIT's memory the head that was written down.
    for changed in (
        anew([*good[:4], replace(good[4], record=replace(good[4].record, status=403)), *good[5:]]),
        anew([*good[:4], replace(good[4], record=replace(good[4].record, before="")), *good[5:]]),
    ):
        await parts.put(changed)
        assert await parts.problem() == ("changed", 20, 20)  # this process knows its own head
        parts.archive.head = changed[-1].head
        assert await parts.problem() == ("differs", 5, 5)
        assert await parts.problem(head=pinned) == ("pinned", 20, 20)
    shorter = anew(good[:15])
    await parts.put(shorter)
    parts.archive.head = shorter[-1].head
    assert await parts.problem() is None  # taken in up to there, as far as the table tells
    assert await parts.problem(head=pinned) == ("pinned", 20, 20)


async def test_what_has_expired_may_be_gone_from_the_front(parts: Parts) -> None:
    await parts.command("DELETE WHERE sequence <= 12 AND sequence > 0")
    assert await parts.problem() == ("front_missing", 1, 12)
    assert await parts.problem(retention_days=0) is None
    # Nothing in between expires while what is older stays, but for what the engine has not got to yet.
    await parts.command("DELETE WHERE sequence = 15")
    assert await parts.problem(retention_days=0) is None
    await parts.command("UPDATE actor = 'x' WHERE sequence = 19")
    assert await parts.problem(retention_days=0) == ("changed", 19, 19)


async def test_what_was_deleted_from_the_stream_alone_shows_and_what_it_dropped_itself_does_not(
    parts: Parts, nats_server: NatsServer
) -> None:
    async def deleted() -> list[tuple[int, int]]:
        page = await parts.checks().verify(AuditVerifyQuery())
        assert (page.ok, page.complete) == (True, True)
        return [(place.first, place.last) for place in page.deleted]

    js = (admin := await nats_server.connect("provision")).jetstream(timeout=30)
    assert await deleted() == []
    for sequence in (1, 9, 10, 20):
        await js.delete_msg("AUDIT", sequence)
    assert await deleted() == [(1, 1), (9, 10), (20, 20)]
    await js.purge_stream("AUDIT")
    assert await deleted() == [(1, 20)]
    config = (await js.stream_info("AUDIT")).config
    await js.update_stream(config.evolve(max_age=1.0, duplicate_window=1.0))
    assert await deleted() == []
    await admin.close()


async def test_a_table_that_was_emptied_is_filled_again_with_the_same_chain(parts: Parts) -> None:
    good = await parts.links()
    await parts.engine.write(lambda client: client.command("TRUNCATE TABLE cypria.audit_chain"))
    assert await parts.problem() == ("tail_missing", 1, 20)
    again = AuditArchive(parts.bus, parts.engine, lambda _links: None)
    task = asyncio.create_task(again.run())
    await eventually(lambda: again.head.sequence == 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await parts.links() == good
    assert await parts.problem(head=f"20:{good[-1].hash}") is None


async def test_the_chain_goes_on_when_the_stream_was_made_anew(parts: Parts, nats_server: NatsServer) -> None:
    older, head = parts.archive.stream, parts.archive.head
    nc = await nats_server.connect("provision")
    await nc.jetstream().delete_stream(streams.AUDIT.name)
    await nc.close()
    await nats_server.provision()
    nc = await nats_server.connect("router")
    for number in (21, 22):
        await nc.jetstream().publish(AUDIT, message(number))
    await nc.close()
    again = AuditArchive(parts.bus, parts.engine, lambda _links: None)
    task = asyncio.create_task(again.run())
    await eventually(lambda: again.head.sequence == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    parts.archive = again
    assert again.stream != older
    assert await parts.problem(head=f"20:{head.hash}") is None
    found = await parts.checks().verify(AuditVerifyQuery())
    assert (found.total, found.complete, found.cursor.split(":")[0]) == (22, False, "20")
    await parts.command(f"DELETE WHERE stream_created = '{older}'")
    assert await parts.problem() == ("front_missing", 1, 1)


async def test_the_engine_lets_expire_what_is_old_and_the_chain_stands(parts: Parts) -> None:
    elsewhere, day = "2020-01-01 00:00:00+00:00", 86_400_000
    parts.archive.stream = ""  # these are not what this process has put in
    now, head, made = now_ms(), START, []
    for number, age in enumerate((100, 99, 98, 3, 2, 1), 1):
        made.append(chain.link(head, elsewhere, number, now - age * day, parts.taken[number - 1].record))
        head = made[-1].head
    await parts.put(made)
    await parts.engine.write(lambda client: client.command("OPTIMIZE TABLE cypria.audit_chain FINAL"))
    assert await parts.engine.read(lambda client: parts.store.page(client, elsewhere, 0, 100, 100)) == made[3:]
    assert await parts.problem(head=f"6:{head.hash}") is None
    assert await parts.problem(head=f"2:{made[1].hash}") == ("pinned", 2, 2)
    done = await parts.engine.write(lambda client: parts.engine.migrate(client, 30, 5))
    assert "table audit_chain: rows are kept for 30 days" in done


async def test_the_view_shows_each_event_once_and_what_older_versions_took_in(parts: Parts) -> None:
    columns = ("event_id", "stream_created", "sequence", "at", "actor", "status")
    moment = datetime.now(UTC)
    older = [[event_id, "x", 1, moment, "older", 200] for event_id in ("audit.3", "old.1", "@x")]
    await parts.engine.write(lambda client: parts.engine.insert(client, "audit_events", columns, older, {}))
    query = "SELECT event_id, actor FROM cypria.audit_log ORDER BY event_id"
    rows = await parts.engine.read(lambda client: client.query(query).result_rows)
    expected = {f"audit.{number}": "ops" for number in range(1, 21) if number != 7} | {"old.1": "older"}
    assert (dict(rows), len(rows)) == (expected, len(expected))
    plan = "EXPLAIN indexes = 1 SELECT * FROM cypria.audit_log WHERE at >= now() - 60 AND actor = 'ops' ORDER BY at LIMIT 50"
    assert "at_span" in str(await parts.engine.read(lambda client: client.query(plan).result_rows)), "reads it all"
    # The API tells the same, newest first: the chain from its end, then what was there before it.
    questions = Questions("cypria")
    for question, actors in (
        (AuditQuery(), ["ops"] * 19 + ["older"]), (AuditQuery(actor="older"), ["older"]), (AuditQuery(limit=19), ["ops"] * 19),
    ):  # fmt: skip
        told = await parts.engine.read(lambda client, asked=question: questions.audit(client, asked, 1 << 20))
        assert ([record["actor"] for record in told.records], told.more) == (actors, question.limit == 19)
    told = await parts.engine.read(lambda client: questions.audit(client, AuditQuery(), 3000))
    assert (told.more, told.records[0]["request_id"]) == (True, "r20")
    assert len(told.records) < 10


async def test_a_stream_that_lost_its_end_goes_on_in_the_chain_behind_what_it_lost(parts: Parts, nats_server: NatsServer, tmp_path: Path) -> None:
    """As after a power cut: the server comes back with less, and puts other records into the same places."""
    tasks = [asyncio.create_task(Archive(parts.bus, parts.engine, shelf).run()) for shelf in SHELVES]
    store, backup = nats_server.data_dir / "nats" / "store", tmp_path / "backup"
    nats_server.kill(signal.SIGTERM)
    shutil.copytree(store, backup)
    nats_server.start()

    async def say(*numbers: int) -> None:
        nc = await nats_server.connect("router")
        for number in numbers:
            await nc.jetstream().publish(AUDIT, message(number))
            event = TestEvent(test_id="t", version=1, status=TestStatus.RUNNING, model_a="a", model_b="b", share_bp=1, at_ms=now_ms())
            alert = Alert(incident="i", level=AlertLevel.INFO, title="t", message="m", at_ms=now_ms())
            told = dump(envelope("test.started", f"test.{number}", "router", now_ms(), event))
            await nc.jetstream().publish(subjects.event("test.started"), told)
            told = dump(envelope("alert", f"alert.{number}", "router", now_ms(), alert))
            await nc.jetstream().publish(subjects.alert("info"), told)
        await nc.close()

    async def kept(*numbers: int) -> bool:
        """Whether the archives of events and alerts have all of these."""
        found = []
        for shelf in SHELVES:
            query = f"SELECT event_id FROM cypria.{shelf.table} FINAL WHERE NOT startsWith(event_id, '@')"
            found += [row[0] for row in await parts.engine.read(lambda client, q=query: client.query(q).result_rows)]
        return sorted(found) == sorted(f"{kind}.{number}" for kind in ("test", "alert") for number in numbers)

    await say(21, 22, 23)
    await eventually(lambda: parts.archive.head.sequence == 23)
    await eventually(lambda: kept(21, 22, 23))
    lost = parts.archive.head
    nats_server.kill(signal.SIGTERM)
    shutil.rmtree(store)
    shutil.copytree(backup, store)
    nats_server.start()
    await say(31, 32)
    await eventually(lambda: parts.archive.head.sequence == 22)
    await eventually(lambda: kept(21, 22, 23, 31, 32))
    tasks += [asyncio.create_task(Archive(parts.bus, parts.engine, shelf).run()) for shelf in SHELVES]
    assert await parts.problem(head=f"23:{lost.hash}") is None
    query = "SELECT event_id FROM cypria.audit_log ORDER BY at"
    rows = await parts.engine.read(lambda client: client.query(query).result_rows)
    assert [row[0] for row in rows][-6:] == ["audit.20", "audit.21", "audit.22", "audit.23", "audit.31", "audit.32"]
    # Another process goes on in the same way, and what is taken from either life shows.
    life, head = parts.archive.stream, parts.archive.head
    task = asyncio.create_task((again := AuditArchive(parts.bus, parts.engine, lambda _links: None)).run())
    await say(33)
    await eventually(lambda: (parts.archive.head.sequence, again.head.sequence) == (23, 23))
    await eventually(lambda: kept(21, 22, 23, 31, 32, 33))
    for one in (task, *tasks):
        one.cancel()
    await asyncio.gather(task, *tasks, return_exceptions=True)
    assert (again.stream, again.head) == (life, parts.archive.head)
    assert await parts.problem(head=f"22:{head.hash}") is None
    await parts.command(f"UPDATE actor = 'x' WHERE sequence = 22 AND stream_created = '{life}'")
    assert await parts.problem() == ("changed", 22, 22)
    await parts.command(f"DELETE WHERE sequence = 21 AND stream_created != '{life}'")
    assert await parts.problem() == ("removed", 21, 21)
