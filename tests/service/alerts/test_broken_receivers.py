"""Receivers that answer too late, with nonsense, or not at all: no attempt hangs, lies or ends the service."""

from typing import Any

import pytest

from services.alerts.adapters.email import EmailDestination
from services.alerts.adapters.pagerduty import PagerDutyDestination
from services.alerts.adapters.pushgateway import PushgatewayDestination
from services.alerts.adapters.slack import SlackBotDestination, SlackDestination
from services.alerts.adapters.webhook import WebhookDestination
from services.alerts.domain.history import History
from services.alerts.domain.outcome import Refused, Retry, Sent
from tests.harness import eventually
from tests.service.alerts.hostile import Broken, slack
from tests.service.alerts.receivers import Receiver, an_alert, channel
from tests.service.alerts.side import Side

LIMIT_S = 1
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NONSENSE: dict[str, Broken] = {
    "closes": Broken(),
    "garbage": Broken(b"\xff\xfe\x00 what?\r\n\r\n" * 20),
    "half a header": Broken(HEAD),
    "another protocol": Broken(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a header without end": Broken(HEAD + b"X: " + b"x" * 200_000),
    "hangs": Broken(hangs=True),
    "drips": Broken(HEAD + b"X: y\r\n" * 100, drip_s=0.05),
    "an impossible status": Broken(b"HTTP/1.1 999999 no\r\n\r\n"),
}


def destinations(port: int) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/x"
    history = History(10)
    history.add(1, "e1", an_alert())

    async def note(_created: str, position: int) -> int:
        return position

    return {
        "slack": SlackDestination(channel(type="slack", webhook_url=url), LIMIT_S),
        "bot": SlackBotDestination(channel(type="slack", token="t", channel="c", url=url), LIMIT_S),
        "pagerduty": PagerDutyDestination(channel(type="pagerduty", integration_key="k", url=url), LIMIT_S),
        "webhook": WebhookDestination(channel(type="webhook", url=url, secret="s"), LIMIT_S),
        "prometheus": PushgatewayDestination(
            channel(type="prometheus", pushgateway_url=url), lambda: history, note, LIMIT_S
        ),
        "email": EmailDestination(
            channel(type="email", recipients=["a@b.c"], smtp_server=f"127.0.0.1:{port}"), LIMIT_S
        ),
    }


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_is_tried_again_and_an_attempt_ends_whatever_the_receiver_does(kind: str) -> None:
    async with NONSENSE[kind].running() as broken:
        for name, destination in destinations(broken.port).items():
            outcome = await destination.deliver(an_alert(), "e1")
            assert isinstance(outcome, (Retry, Refused)), (name, outcome)
            assert isinstance(outcome, Retry) or "999999" in outcome.reason, (name, outcome)
            assert f"127.0.0.1:{broken.port}" in outcome.reason
            assert "check " in outcome.reason
            assert "/x" not in outcome.reason
            await destination.close()
        if broken.hangs or broken.drip_s:
            assert not broken.ended, "an attempt went on until the receiver had had enough"


async def test_an_answer_that_is_cut_off_after_its_status_counts_by_the_status_where_that_says_all() -> None:
    async with Broken(HEAD + b"Content-Length: 99\r\n\r\n{").running() as broken:
        found = {name: await one.deliver(an_alert(), "e1") for name, one in destinations(broken.port).items()}
    assert found["webhook"] == found["pagerduty"] == found["prometheus"] == Sent()
    assert isinstance(found["bot"], Retry), "Slack says in the body whether it worked"


async def test_slacks_own_rules_are_kept_by_every_alert_and_every_answer_of_it_is_understood(side: Side) -> None:
    wild = {"title": "<!channel> " * 40, "message": "&<>" * 3000, "numbers": {f"n{i}": i for i in range(60)}}
    async with Receiver(slack).running() as receiver:
        hook = SlackDestination(channel(type="slack", webhook_url=f"{receiver.url}/hook", channel="#c"))
        bot = SlackBotDestination(channel(type="slack", token="t", channel="#c", url=f"{receiver.url}/api"))
        for alert in (an_alert(), an_alert(**wild), an_alert(title="", message="", resolved=True)):
            assert await hook.deliver(alert, "e1") == Sent()
            assert await bot.deliver(alert, "e1") == Sent()
        answers = {
            429: (Retry, "too many messages"), 500: (Retry, "look at that server"), 302: (Retry, "set webhook_url to where"),
            404: (Refused, "check webhook_url"), 410: (Refused, "set webhook_url to it"), 403: (Refused, "check webhook_url"),
        }  # fmt: skip
        for status, (kind, words) in answers.items():
            receiver.reply = lambda _n, _got, s=status: (s, {}, {"Retry-After": "2"} if s == 429 else {})
            outcome = await hook.deliver(an_alert(), "e1")
            assert isinstance(outcome, kind)
            assert outcome.reason.startswith(f"HTTP {status} from {receiver.url.removeprefix('http://')}: ")
            assert words in outcome.reason
            assert getattr(outcome, "after_s", 0) == (2 if status == 429 else 0)
        receiver.reply = slack
        entry = {"type": "slack", "webhook_url": f"{receiver.url}/hook", "title": "[$state] $title", "text": "*$rule* $value"}
        async with side.service(entry):
            await side.raise_alert("Too slow", rule="p95", value=3.5)
            await eventually(lambda: side.delivered("Too slow", "slack"))
    blocks = receiver.got[-1].body["blocks"]
    assert blocks[0]["text"]["text"].endswith("[CRITICAL] Too slow")
    assert blocks[1]["text"]["text"] == "*p95* 3.5"
