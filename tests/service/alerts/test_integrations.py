"""DTESN and event webhooks on a real nats-server: real HTTP receivers that refuse, stall and break."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.common import Decision, Outcome
from schemas.v1.windows import Cell, Watermark, Window
from services._runtime.clock import now_ms
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.domain.signing import SIGNATURE, TIMESTAMP, verify
from tests.harness import eventually
from tests.service.alerts.occasions import ask, decide, happen, roll_back, standing
from tests.service.alerts.receivers import Got, Receiver
from tests.service.alerts.side import Side

SECRET = "hidden-word"


def dtesn(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"type": "dtesn", "url": receiver.url, "timeout_seconds": 30, **more}


def hook(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"type": "webhook", "url": f"{receiver.url}/events", "secret": SECRET, "timeout_seconds": 30, **more}


def asked(receiver: Receiver) -> list[tuple[str, list[str]]]:
    return [(got.body["action"], got.body["targets"]) for got in receiver.got]


async def settled(side: Side, name: str) -> dict[str, Any]:
    async def idle() -> Any:
        found = await standing(side, name)
        return found if not found["waiting"] and not found["in_hand"] and found["last"] else None

    return dict(await eventually(idle))


async def test_dtesn_is_told_of_promotions_and_rollbacks_alone(side: Side) -> None:
    async with Receiver().running() as cache:
        entry = dtesn(cache, token="hidden-token", model_names={"stable": "org/stable"})
        async with side.service(integrations=[entry]):
            await happen(side, "test.started")
            event_id = await decide(side)
            await decide(side, Decision.KEEP_A, "t2")
            await roll_back(side, "t3")
            await eventually(lambda: len(cache.got) >= 5)
            await settled(side, "dtesn")
    assert asked(cache) == [
        ("get_metrics", []), ("invalidate_model", ["org/stable"]), ("optimize_for_model", ["canary"]),
        ("get_metrics", []), ("invalidate_model", ["canary"]),
    ]  # fmt: skip
    first = cache.got[1]
    assert first.path == "/v1/dtesn/cache/control"
    assert first.body["force"] is False
    assert first.headers["Authorization"] == "Bearer hidden-token"
    assert first.headers["Idempotency-Key"] == f"{event_id}.decided"


async def test_dtesn_that_is_off_busy_or_broken_is_tried_again_and_one_that_does_not_warm_has_done_its_part(side: Side) -> None:
    answers: list[tuple[int, dict[str, str]]] = [(503, {}), (429, {"Retry-After": "1"}), (500, {})]

    def reply(_n: int, got: Got) -> tuple[int, Any, dict[str, str]]:
        if got.body["action"] == "optimize_for_model":
            return 400, {"detail": "unknown action"}, {}
        status, headers = answers.pop(0) if answers else (200, {})
        return status, {}, headers

    async with Receiver(reply).running() as cache, side.service(integrations=[dtesn(cache)]):
        await decide(side)
        last = (await eventually(lambda: _sent(side, "dtesn")))["last"]
    assert (last["attempts"], last["reason"]) == (4, "the server does not warm (HTTP 400)")
    assert [action for action, _ in asked(cache)] == ["get_metrics"] * 4 + ["invalidate_model", "optimize_for_model"]


async def _sent(side: Side, name: str) -> Any:
    found = await standing(side, name)
    return found if found["last"] and found["last"]["status"] == "sent" else None


async def test_what_an_integration_would_not_take_is_a_dead_letter_that_is_sent_back_once(side: Side) -> None:
    status = 404
    cached, hooked = Receiver(lambda _n, _got: (status, {}, {})), Receiver()
    async with cached.running() as cache, hooked.running() as other:
        integrations = [dtesn(cache), hook(other, events=["test.completed"])]
        async with side.service(integrations=integrations):
            event_id = await decide(side)
            (letter,) = await eventually(side.letters)
            assert letter.stream == "INTEGRATIONS"
            assert "integration dtesn: HTTP 404: this server has no DTESN cache control" in letter.reason
            found = await eventually(lambda: _dead(side, "dtesn"))
            assert (found["dead_letters"], found["last"]["status"]) == (1, "failed")
            status = 200
            before = len(cache.got)
            assert (await ask(side, "integrations-redrive", integration="dtesn"))["redriven"] == 1
            await eventually(lambda: len(cache.got) == before + 3)
            assert (await eventually(lambda: _sent(side, "dtesn")))["dead_letters"] == 0
            again = await ask(side, "integrations-redrive")
            assert (again["redriven"], again["skipped"]) == (0, [])
            refused = await ask(side, "integrations-redrive", integration="nobody")
            assert refused["code"] == "not_found"
            assert "dtesn, webhook" in refused["message"]
    assert [got.body["id"] for got in other.got] == [event_id], "what was sent back was for one integration alone"


async def _dead(side: Side, name: str) -> Any:
    found = await standing(side, name)
    return found if found["dead_letters"] else None


async def test_a_webhook_gets_the_events_that_it_wants_as_they_are_and_signed(side: Side) -> None:
    async with Receiver().running() as receiver:
        wanted = hook(receiver, events=["test.start*", "model.*"], tests=["t1"])
        async with side.service(integrations=[wanted]):
            event_id = await happen(side, "test.started", actor="ops")
            await happen(side, "test.started", "t2")
            await roll_back(side)
            await happen(side, "test.started", "t1", 3)
            await eventually(lambda: len(receiver.got) == 2)
            await settled(side, "webhook")
    got = receiver.got[0]
    assert (got.body["id"], got.body["type"], got.body["source"]) == (event_id, "cypria.test.started.v1", "cypria/router")
    assert got.body["data"]["actor"] == "ops"
    assert got.headers["Content-Type"] == "application/cloudevents+json"
    now_s = int(got.headers[TIMESTAMP])
    assert verify(SECRET, now_s, event_id, got.raw, got.headers[SIGNATURE], now_s)
    assert not verify("guess", now_s, event_id, got.raw, got.headers[SIGNATURE], now_s)
    assert [g.body["id"] for g in receiver.got] == [event_id, "t1.3.1"]


async def test_one_that_answers_too_late_is_told_again(side: Side) -> None:
    side.webhook.behave = lambda _path, n: "hang" if n == 0 else 200
    late = {"type": "webhook", "url": f"{side.webhook.url}/late", "secret": "s", "timeout_seconds": 1}
    async with side.service(integrations=[late]):
        await happen(side, "test.started")
        attempts = (await eventually(lambda: _sent(side, "webhook")))["last"]["attempts"]
    answered = [call.answered for call in side.webhook.of("late")]
    assert (answered[0], answered[-1], len(answered)) == (None, 200, attempts)


@contextlib.asynccontextmanager
async def breaking() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that takes connections, reads, and lets go without a word."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(100))
        writer.write(b"HTTP/1.1 200")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen
    finally:
        server.close()


async def test_one_that_stalls_or_breaks_delays_neither_another_nor_an_alert(side: Side) -> None:
    side.webhook.behave = lambda path, _n: "hang" if path == "stalled" else 200
    stalled = {"type": "webhook", "name": "stalled", "url": f"{side.webhook.url}/stalled", "secret": "s", "timeout_seconds": 60}
    async with Receiver().running() as receiver, breaking() as (url, seen):
        broken = {"type": "webhook", "name": "broken", "url": url, "secret": "s"}
        retry = RetryPolicy(first_s=0.02, cap_s=0.05, max_attempts=3)
        async with side.service(side.slack(), retry=retry, integrations=[stalled, broken, hook(receiver)]):
            for number in range(5):
                await happen(side, "test.paused", version=number + 2)
            await side.raise_alert("meanwhile")
            await eventually(lambda: side.delivered("meanwhile"))
            await eventually(lambda: len(receiver.got) == 5)
            assert (await standing(side, "stalled"))["last"] is None
            found = await eventually(lambda: _dead(side, "broken"))
            assert "closed the connection before it had answered: check url" in found["last"]["reason"]
    assert len(seen) >= 3


async def test_figures_of_windows_are_summed_by_the_brokers_clock(side: Side) -> None:
    async with Receiver().running() as receiver:
        entry = hook(receiver, events=["metric_window"], window_seconds=1)
        async with side.service(integrations=[entry]):
            await happen(side, "test.started")
            metrics = await side.server.connect("metrics")
            sent = {"a": 0, "b": 0}
            try:

                async def told() -> bool:
                    """A second of traffic after the other, until some of it has come."""
                    cells = [Cell(test="t1", variant=name, share_bp=1000, done=2, outcomes={Outcome.OK: 2}) for name in sent]
                    for partition in range(2):
                        window = Window(partition=partition, writer="w", watermark=Watermark(), cells=cells)
                        await metrics.jetstream().publish(subjects.window(partition), window.model_dump_json().encode())
                        for name in sent:
                            sent[name] += 2
                    return len(receiver.got) >= 3

                await eventually(told, 40, every_s=0.2)
                await asyncio.sleep(1.0)  # the next message has to belong to another second
                empty = Window(partition=0, writer="w", watermark=Watermark())
                await metrics.jetstream().publish(subjects.window(0), empty.model_dump_json().encode())
                await eventually(lambda: _sum(receiver, "b") == sent["b"])
            finally:
                await metrics.close()
    assert _sum(receiver, "a") == sent["a"], "every request is in one window"
    body = receiver.got[0].body
    assert body["type"] == "cypria.integration.metric_window.v1"
    assert (body["data"]["model_a"], body["data"]["model_b"]) == ("stable", "canary")
    assert body["data"]["ends_ms"] - body["data"]["begins_ms"] == 1000
    ids = [got.body["id"] for got in receiver.got]
    assert len(set(ids)) == len(ids)


def _sum(receiver: Receiver, variant: str) -> int:
    return sum(got.body["data"]["variants"][variant]["requests"] for got in receiver.got)


async def test_a_test_acts_on_nothing_and_a_list_shows_how_each_stands(side: Side) -> None:
    async with Receiver(lambda _n, got: (404 if "dtesn" in got.path else 200, {}, {})).running() as receiver:
        integrations = [dtesn(receiver), hook(receiver)]
        async with side.service(integrations=integrations):
            results = (await ask(side, "integrations-test"))["integrations"]
            assert [(one["integration"], one["outcome"]) for one in results] == [("dtesn", "failed"), ("webhook", "sent")]
            assert "no DTESN cache control" in results[0]["reason"]
            assert (await ask(side, "integrations-test", integration="webhook"))["integrations"][0]["type"] == "webhook"
            listed = (await ask(side, "integrations"))["integrations"]
            assert [(one["integration"], one["events"], one["last"]) for one in listed] == [
                ("dtesn", ["rolled_back", "decided"], None), ("webhook", ["test.*"], None),
            ]  # fmt: skip
            assert SECRET not in json.dumps(listed)
            assert receiver.url not in json.dumps([listed, results])
    assert "invalidate_model" not in [got.body.get("action") for got in receiver.got]


async def test_without_integrations_nothing_of_it_exists(side: Side) -> None:
    async with side.service(side.slack()):
        await decide(side)
        await side.raise_alert("later")
        await eventually(lambda: side.delivered("later"))
        assert (await ask(side, "integrations"))["integrations"] == []
        admin = await side.server.connect("provision")
        info = await admin.jetstream(timeout=30).stream_info("INTEGRATIONS")
        names = [str(one.name) for one in await admin.jetstream(timeout=30).consumers_info("EVENTS")]
        await admin.close()
    assert (info.state.messages, info.state.consumer_count) == (0, 0)
    assert "alerts-integrations" not in names


async def test_one_that_was_away_is_told_what_it_missed_and_a_new_one_what_happens_from_then_on(side: Side) -> None:
    async with Receiver().running() as receiver:
        old, new = (hook(receiver, name=name, url=f"{receiver.url}/{name}") for name in ("old", "new"))
        async with side.service(integrations=[old]):
            await happen(side, "test.started", "t1")
            await eventually(lambda: receiver.got)
            await settled(side, "old")
        await happen(side, "test.started", "t2")
        async with side.service():
            await happen(side, "test.started", "t3")
        async with side.service(integrations=[old, new]):
            await happen(side, "test.started", "t4")
            await eventually(lambda: len(receiver.got) == 5)
            for name in ("old", "new"):
                await settled(side, name)
    told = {name: [got.body["data"]["test_id"] for got in receiver.got if got.path == f"/{name}"] for name in ("old", "new")}
    assert told == {"old": ["t1", "t2", "t3", "t4"], "new": ["t4"]}


@pytest.mark.parametrize(("hours", "told"), [(1, 5), (7, 2)])
async def test_figures_of_long_ago_are_not_told(side: Side, hours: int, told: int) -> None:
    metrics = await side.server.connect("metrics")
    alerts = await side.server.connect("alerts")

    async def window(requests: int) -> None:
        cell = Cell(test="t1", variant="b", share_bp=1, done=requests, outcomes={Outcome.OK: requests})
        payload = Window(partition=0, writer="w", watermark=Watermark(), cells=[cell]).model_dump_json().encode()
        await metrics.jetstream().publish(subjects.window(0), payload)

    try:
        await window(3)
        created = str((await alerts.jetstream().stream_info("WINDOWS")).created)
        noted = now_ms() - hours * 3_600_000
        kv = await alerts.jetstream().key_value("alert_state")
        await kv.put("w.position", json.dumps({"created": created, "after": {"1": [0, noted]}}).encode())
        async with Receiver().running() as receiver:
            figures = hook(receiver, events=["metric_window"], window_seconds=1)
            async with side.service(integrations=[figures]):
                await window(2)
                await asyncio.sleep(1.1)  # the window that closes it has to belong to another second
                await window(1)
                await eventually(lambda: receiver.got and _sum(receiver, "b") == told)
    finally:
        await metrics.close()
        await alerts.close()


async def test_a_poison_message_stops_nothing(side: Side) -> None:
    async with Receiver().running() as receiver, side.service(integrations=[hook(receiver)]):
        for payload in (b"\xff no json", b"{}", b"[" * 5000):
            await side.router.jetstream().publish(subjects.event("test.started"), payload)
        event_id = await happen(side, "test.started")
        await eventually(lambda: [got.body["id"] for got in receiver.got] == [event_id])
        letters = await eventually(side.letters)
    assert all("not an event test.started" in letter.reason for letter in letters)
