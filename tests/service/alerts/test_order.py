"""Events of one incident arrive in their order, whoever delivers them and whatever fails; what belongs together goes together."""

import asyncio
import contextlib
from typing import Any

from schemas.v1.common import AlertLevel
from services.alerts.domain.backoff import RetryPolicy
from tests.harness import eventually
from tests.service.alerts.receivers import Receiver
from tests.service.alerts.side import Side

STORY = (("warns", "WARNING", False), ("worsens", "CRITICAL", False), ("ends", "INFO", True), ("returns", "WARNING", False))


async def tell(side: Side, incident: str, story: tuple[tuple[str, str, bool], ...] = STORY) -> None:
    for word, level, resolved in story:
        await side.raise_alert(
            f"{incident} {word}", incident=incident, level=AlertLevel(level), resolved=resolved, event_id=f"{incident}.{word}"
        )


@contextlib.asynccontextmanager
async def three(side: Side, *destinations: dict[str, Any], **more: Any) -> Any:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(side.service(*destinations, **more))
        yield


def told(side: Side, incident: str) -> list[str]:
    return [call.title.split(f"{incident} ")[1] for call in side.webhook.accepted() if f" {incident} " in call.title]


async def test_three_replicas_keep_each_incident_in_order_through_failures(side: Side) -> None:
    side.webhook.behave = lambda _path, n: 500 if n % 3 == 0 else 200
    side.webhook.delay_s = 0.02
    names = [f"i{number}" for number in range(12)]
    async with three(side, side.slack()):
        for name in names:
            await tell(side, name)
        await eventually(lambda: len(side.webhook.accepted()) >= 4 * len(names))
        await eventually(side.consumers_idle)
    assert {name: told(side, name) for name in names} == {name: [word for word, _, _ in STORY] for name in names}


async def test_a_resolution_waits_for_what_a_broken_channel_has_not_taken_yet(side: Side) -> None:
    broken = True
    side.webhook.behave = lambda _path, _n: 500 if broken else 200
    async with three(side, side.slack(), side.slack("fine")):
        await tell(side, "disk", STORY[:3])
        await side.raise_alert("other")
        await eventually(lambda: len(side.webhook.of("hook")) >= 4)
        assert all("disk warns" in call.title or "other" in call.title for call in side.webhook.of("hook"))
        broken = False
        await eventually(lambda: side.delivered("disk ends"))
        await eventually(side.consumers_idle)
    assert told(side, "disk") == ["warns", "worsens", "ends"]


async def test_what_was_given_up_holds_nothing_up(side: Side) -> None:
    side.webhook.behave = lambda _path, n: 404 if n == 0 else 200
    async with three(side, side.slack()):
        await tell(side, "disk")
        await eventually(lambda: side.delivered("disk returns"))
        await eventually(side.consumers_idle)
    assert told(side, "disk") == ["worsens", "ends", "returns"]


async def test_waiting_for_ones_turn_is_no_attempt(side: Side) -> None:
    """A channel that is away for long: what waits behind still gets all of its attempts."""
    side.webhook.behave = lambda _path, n: 500 if n < 12 else 200
    policy = RetryPolicy(first_s=0.02, cap_s=0.1, max_attempts=10)
    async with three(side, side.slack(), retry=policy):
        await tell(side, "disk", STORY[:2])
        await eventually(lambda: side.delivered("disk worsens"))
        await eventually(side.consumers_idle)
        items = await side.history()
    states = {item["title"]: item["deliveries"][0] for item in items}
    assert (states["disk warns"]["status"], states["disk warns"]["attempts"]) == ("failed", 10)
    assert (states["disk worsens"]["status"], states["disk worsens"]["attempts"]) == ("sent", 3)


async def test_alerts_of_one_test_within_the_time_go_as_one_message_from_whichever_replica(side: Side) -> None:
    async with three(side, side.slack(group_seconds=3)):
        alerts = [(f"{word} {number}", test_id) for number in range(6) for word, test_id in (("first", "t1"), ("second", "t2"))]
        await asyncio.gather(
            *(side.raise_alert(title, test_id=test_id) for title, test_id in alerts),
            side.raise_alert("fire", level=AlertLevel.EMERGENCY, test_id="t1"),
        )
        await eventually(side.webhook.accepted)
        assert [call.title.split(": ")[1] for call in side.webhook.accepted()] == ["fire"], "an emergency does not wait"
        for word in ("first", "second"):
            for number in range(6):
                await eventually(lambda title=f"{word} {number}": side.delivered(title))
        await eventually(side.consumers_idle)
    groups = [str(call.body["blocks"]) for call in side.webhook.accepted()[1:]]
    assert len(groups) == 2
    for word, text in zip(("first", "second"), sorted(groups, key=lambda text: "second" in text), strict=True):
        assert all(f"{word} {number}" in text for number in range(6))
        assert "one of 6 alerts" in text


async def test_a_rate_limit_holds_back_in_one_hand_and_keeps_the_order(side: Side, monkeypatch: Any) -> None:
    monkeypatch.setattr("services.alerts.domain.route.WINDOW_MS", 2_000)
    async with (
        Receiver().running() as machine,
        three(
            side, side.slack(messages_per_minute=1),
            {"type": "webhook", "url": machine.url, "secret": "s", "messages_per_minute": 30},
        ),
    ):
        for name in ("a", "b", "c"):
            await tell(side, name, STORY[:3])
        await eventually(side.consumers_idle)
    messages = [call.body["blocks"] for call in side.webhook.accepted()]
    assert 3 <= len(messages) < 9, "the first at once, others with each other, a resolution after what it resolves"
    lines = [line for blocks in messages for line in f"{blocks[0]['text']['text']}\n{blocks[1]['text']['text']}".splitlines()]
    for name in ("a", "b", "c"):
        words = [line.rpartition(" ")[2].rstrip(".") for line in lines if f" {name} " in line and "one of" not in line]
        assert list(dict.fromkeys(words)) == [word for word, _, _ in STORY[:3]]
    for name in ("a", "b", "c"):
        ids = [got.body["id"] for got in machine.got if got.body["id"].startswith(f"{name}.")]
        assert ids == [f"{name}.{word}" for word, _, _ in STORY[:3]]


async def test_what_came_before_a_destination_was_added_holds_nothing_up_there(side: Side) -> None:
    async with side.service(side.slack()):
        await tell(side, "disk", STORY[:1])
        await eventually(lambda: side.delivered("disk warns"))
    async with side.service(side.slack(), side.slack("added")):
        await tell(side, "disk", STORY[1:3])
        await eventually(lambda: side.delivered("disk ends", "added"))
        await eventually(side.consumers_idle)
    assert told(side, "disk") == ["warns", "worsens", "ends"]
    assert [call.title.rpartition(" ")[2] for call in side.webhook.accepted("added")] == ["worsens", "ends"]
