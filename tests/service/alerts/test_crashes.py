"""kill -9, replicas and a dead nats-server: every alert arrives, and once."""

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path

from services.alerts.domain.wording import MAY_BE_REPEAT
from tests.harness import eventually
from tests.service.alerts.side import Side

LONG_S = 60


async def test_an_alert_whose_delivery_was_cut_by_kill_9_arrives_once_after_the_restart(
    side: Side, tmp_path: Path
) -> None:
    side.webhook.behave = lambda _path, n: "hang" if n == 0 else 200
    first = side.process(tmp_path, side.slack())
    await side.raise_alert("cut")
    await eventually(lambda: side.webhook.calls, LONG_S)
    side.kill(first)
    side.process(tmp_path, side.slack())
    await eventually(side.webhook.accepted, LONG_S)
    await eventually(lambda: side.delivered("cut"), LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    cut, again = side.webhook.calls
    assert (cut.message, again.message) == ("cut.", f"{MAY_BE_REPEAT}\ncut.")


async def test_a_group_whose_sender_died_after_it_had_arrived_comes_again_as_it_was_and_says_so(
    side: Side, tmp_path: Path
) -> None:
    def behave(_path: str, n: int) -> int:
        if n == 0:
            side.kill(first)
        return 200

    side.webhook.behave = behave
    grouped = side.slack(group_seconds=1)
    first = side.process(tmp_path, grouped)
    await eventually(side.answers, LONG_S)
    await asyncio.gather(*(side.raise_alert(name, test_id="t1") for name in ("a", "b", "c")))
    await eventually(side.webhook.accepted, LONG_S)
    side.process(tmp_path, grouped)
    await side.raise_alert("d", test_id="t1")
    await eventually(lambda: side.delivered("d"), LONG_S)
    for name in ("a", "b", "c"):
        await eventually(lambda name=name: side.delivered(name), LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    arrived = side.webhook.accepted()
    told, again = [call for call in arrived if "a" in call.message.replace(MAY_BE_REPEAT, "")]
    assert again.id == told.id
    assert again.message == f"{MAY_BE_REPEAT}\n{told.message}"
    assert [call.title for call in arrived if call.id != told.id] == ["\U0001f534 CRITICAL: d"]


async def test_an_alert_that_was_acknowledged_is_not_repeated_after_kill_9(side: Side, tmp_path: Path) -> None:
    first = side.process(tmp_path, side.slack())
    event_id = await side.raise_alert("done", incident="disk")
    await eventually(lambda: side.delivered("done"), LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    side.kill(first)
    side.process(tmp_path, side.slack())
    await side.raise_alert("done", incident="disk", event_id=event_id)
    await side.raise_alert("done again", incident="disk")
    await side.raise_alert("end")
    await eventually(lambda: side.delivered("end"), LONG_S)
    assert [call.title.split(": ")[1] for call in side.webhook.calls] == ["done", "end"]


async def test_random_kills_lose_nothing_and_repeat_only_what_was_in_flight(side: Side, tmp_path: Path) -> None:
    draw = random.Random(20)
    side.webhook.delay_s = 0.02
    kills, titles = 3, [f"a{number}" for number in range(60)]
    process = side.process(tmp_path, side.slack())
    await eventually(side.answers, LONG_S)
    for part in range(kills):
        for title in titles[part * 20 : part * 20 + 20]:
            await side.raise_alert(title)
        goal = len(side.webhook.accepted()) + draw.randrange(1, 15)
        await eventually(lambda goal=goal: len(side.webhook.accepted()) >= goal, LONG_S)
        side.kill(process)
        process = side.process(tmp_path, side.slack())
    seen: Counter[str] = Counter()

    def complete() -> bool:
        seen.clear()
        seen.update(call.title.split(": ")[1] for call in side.webhook.accepted())
        return len(seen) == len(titles)

    await eventually(complete, LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    complete()
    assert sum(seen.values()) - len(titles) <= kills, "at most the one in flight at each kill may come twice"


async def test_two_replicas_deliver_once(side: Side, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    side.process(tmp_path / "one", side.slack())
    side.process(tmp_path / "two", side.slack())
    titles = [f"a{number}" for number in range(30)]
    for title in titles:
        for copy in range(2):
            await side.raise_alert(title, event_id=f"{title}.{copy}")
    await eventually(lambda: len(side.webhook.accepted()) >= len(titles), LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    assert sorted(call.title.split(": ")[1] for call in side.webhook.accepted()) == sorted(titles)


async def test_the_service_goes_on_after_nats_server_was_killed(side: Side, tmp_path: Path) -> None:
    side.process(tmp_path, side.slack())
    await side.raise_alert("before")
    await eventually(lambda: side.delivered("before"), LONG_S)
    side.server.kill()
    side.server.start()
    await side.raise_alert("after")
    await eventually(lambda: side.webhook.accepted()[1:], LONG_S)
    await eventually(side.answers, LONG_S)
    await eventually(lambda: side.delivered("after"), LONG_S)
    await eventually(side.consumers_idle, LONG_S)
    assert [call.title.split(": ")[1] for call in side.webhook.accepted()] == ["before", "after"]


async def test_sigterm_lets_a_delivery_end_and_exits_cleanly(side: Side, tmp_path: Path) -> None:
    side.webhook.delay_s = 0.3
    process = side.process(tmp_path, side.slack())
    await side.raise_alert("last words")
    await eventually(lambda: side.webhook.calls, LONG_S)
    process.terminate()
    await eventually(lambda: process.poll() is not None, LONG_S)
    assert process.returncode in {0, -signal.SIGTERM}, "uvicorn ends by the signal that it handled"
    await eventually(side.consumers_idle)
    assert len(side.webhook.accepted()) == 1
