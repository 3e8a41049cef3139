"""Who gets what, how often, and what an administrator can do about the rest."""

import json
from typing import Any

from schemas.v1.common import AlertLevel
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.domain.route import WINDOW_MS, take_slot
from tests.harness import eventually
from tests.service.alerts.receivers import Receiver
from tests.service.alerts.side import Side

ONCE = RetryPolicy(first_s=0.02, cap_s=0.05, max_attempts=1)


async def test_levels_tests_and_tags_choose_the_destination(side: Side) -> None:
    async with side.service(
        side.slack("levels", levels=["CRITICAL"]), side.slack("tests", tests=["t1*"]),
        side.slack("tags", tags={"model_b": "llama-*"}), side.slack(),
    ):  # fmt: skip
        await side.raise_alert("one", level=AlertLevel.EMERGENCY, test_id="t12", tags={"model_b": "llama-3"})
        await side.raise_alert("two", test_id="t2", tags={"model_b": "other"})
        await side.raise_alert("three")
        for path in ("hook",):
            await eventually(lambda path=path: side.delivered("three", path))
        await eventually(side.consumers_idle)
    told = {path: [c.title.split(": ")[1] for c in side.webhook.accepted(path)] for path in ("levels", "tests", "tags")}
    assert told == {"levels": ["two", "three"], "tests": ["one"], "tags": ["one"]}


async def test_an_incident_that_is_raised_again_after_the_repeat_interval_is_told_again(side: Side) -> None:
    async with side.service(side.slack(repeat_interval_seconds=0.001), side.slack("never")):
        await side.raise_alert("disk", event_id="e1")
        await eventually(lambda: side.delivered("disk"))
        await side.raise_alert("disk", event_id="e2")
        await eventually(lambda: len(side.webhook.accepted()) == 2)
        await eventually(side.consumers_idle)
    assert len(side.webhook.accepted("never")) == 1


async def test_what_the_rate_limit_holds_back_goes_as_one_message_and_an_emergency_at_once(
    side: Side, monkeypatch: Any
) -> None:
    monkeypatch.setattr("services.alerts.domain.route.WINDOW_MS", 2_000)
    async with side.service(side.slack(messages_per_minute=1)):
        await side.raise_alert("first")
        await eventually(lambda: side.delivered("first"))
        for number in range(5):
            await side.raise_alert(f"held {number}")
        await side.raise_alert("fire", level=AlertLevel.EMERGENCY)
        for number in range(5):
            await eventually(lambda n=number: side.delivered(f"held {n}"))
        await eventually(lambda: side.delivered("fire"))
        await eventually(side.consumers_idle)
    titles = [call.title for call in side.webhook.accepted()]
    assert sum("fire" in title for title in titles) == 1
    said = " ".join(str(call.body["blocks"]) for call in side.webhook.accepted())
    assert all(f"held {number}" in said for number in range(5))
    assert len(titles) < 7, "grouped"


async def test_a_rate_limit_outlives_a_restart_and_loses_nothing_at_a_stop(side: Side, monkeypatch: Any) -> None:
    async with side.service(side.slack(messages_per_minute=1)):
        await side.raise_alert("first")
        await eventually(lambda: side.delivered("first"))
        await side.raise_alert("held")
    assert len(side.webhook.accepted()) == 1
    monkeypatch.setattr("services.alerts.domain.route.WINDOW_MS", 10)
    async with side.service(side.slack(messages_per_minute=1)):
        await eventually(lambda: side.delivered("held"))
    assert len(side.webhook.accepted()) == 2


def test_slots_are_counted_over_any_minute() -> None:
    sent, wait = take_slot([], 2, 1_000_000)
    sent, wait = take_slot(sent, 2, 1_010_000)
    assert wait == 0
    assert take_slot(sent, 2, 1_020_000) == (sent, WINDOW_MS - 20_000)
    assert take_slot(sent, 2, 1_000_000 + WINDOW_MS)[1] == 0


async def ask(side: Side, verb: str, **body: Any) -> dict[str, Any]:
    reply = await side.router.request(f"cypria.alerts.{verb}", json.dumps(body).encode(), timeout=25)
    return dict(json.loads(reply.data))


async def test_a_test_alert_goes_to_every_destination_and_says_what_became_of_it(side: Side) -> None:
    side.webhook.behave = lambda path, _n: 404 if path == "gone" else 200
    async with side.service(side.slack(min_level="EMERGENCY"), side.slack("gone"), {"type": "log"}):
        outcomes = {one["destination"]: one for one in (await ask(side, "test"))["destinations"]}
    assert {name: one["outcome"] for name, one in outcomes.items()} == {"hook": "sent", "gone": "failed", "log": "sent"}
    assert outcomes["gone"]["reason"].startswith(f"HTTP 404 from {side.webhook.url.removeprefix('http://')}: ")
    assert "Test alert" in side.webhook.accepted()[0].title
    assert f"{side.webhook.url.removeprefix('http://')}/" not in str(outcomes)


async def test_dead_letters_are_sent_back_once_and_only_to_their_destination(side: Side) -> None:
    async with (
        Receiver(lambda _n, _got: (500, {}, {})).running() as broken,
        side.service(
            {"type": "webhook", "name": "broken", "url": broken.url, "secret": "s"}, side.slack(), retry=ONCE
        ),
    ):
        for title in ("one", "two", "over"):
            await side.raise_alert(title)
        await eventually(lambda: _count(side, 3))
        await side.raise_alert("over", resolved=True, event_id="over.resolved")
        await eventually(lambda: side.delivered("over"))
        await eventually(side.consumers_idle)
        broken.reply = lambda _n, _got: (200, {}, {})
        before = len(broken.got)
        reply = await ask(side, "redrive", destination="broken")
        assert reply["redriven"] == 2
        assert [one["reason"] for one in reply["skipped"]] == ["its incident was resolved since"]
        for title in ("one", "two"):
            await eventually(lambda title=title: side.delivered(title, "broken"))
        assert await ask(side, "redrive") == {"redriven": 0, "skipped": []}
        assert "no destination is named" in (await ask(side, "redrive", destination="x"))["message"]
        await eventually(side.consumers_idle)
    assert [got.body["data"]["title"] for got in broken.got[before:]] == ["one", "two"]
    assert sum("one" in call.title for call in side.webhook.accepted()) == 1, "the others had it already"


async def _count(side: Side, number: int) -> bool:
    return len(await side.letters()) == number
