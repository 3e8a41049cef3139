"""PagerDuty, Slack's bot, signed webhooks, Apprise and the Pushgateway, each against a real receiver."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings import ConfigError
from services.alerts.adapters.apprise import AppriseDestination
from services.alerts.adapters.pagerduty import PagerDutyDestination
from services.alerts.adapters.slack import SlackBotDestination
from services.alerts.adapters.webhook import WebhookDestination
from services.alerts.domain.outcome import Refused, Retry, Sent
from services.alerts.domain.signing import TOLERANCE_S, verify
from tests.harness import eventually
from tests.service.alerts.receivers import (
    Got,
    Receiver,
    an_alert,
    channel,
    prometheus,
    pushgateway,
    queried,
    scrape,
    until_up,
)
from tests.service.alerts.side import ROOT, Side

PAGE = ROOT / "docs" / "alerts.md"


def events_v2(_number: int, got: Got) -> tuple[int, Any, dict[str, str]]:
    """As PagerDuty's documentation has it: 202, or 400 with what is wrong."""
    body, errors = got.body, []
    if len(body.get("routing_key", "")) != 32:
        errors.append("routing_key")
    if body.get("event_action") not in {"trigger", "acknowledge", "resolve"}:
        errors.append("event_action")
    if len(body.get("dedup_key", "")) > 255:
        errors.append("dedup_key")
    if body.get("event_action") == "trigger":
        payload = body.get("payload", {})
        if not 0 < len(payload.get("summary", "")) <= 1024 or not payload.get("source"):
            errors.append("payload")
        if payload.get("severity") not in {"critical", "error", "warning", "info"}:
            errors.append("severity")
    if errors:
        return 400, {"status": "invalid event", "errors": errors}, {}
    return 202, {"status": "success", "dedup_key": body["dedup_key"]}, {}


KEY = "0123456789abcdef0123456789abcdef"


async def test_a_pagerduty_incident_is_opened_raised_and_resolved_under_one_key(side: Side) -> None:
    async with Receiver(events_v2).running() as duty:
        entry = {
            "type": "pagerduty", "integration_key": KEY, "url": f"{duty.url}/v2/enqueue",
            "severity_mapping": {"CRITICAL": "critical"},
        }  # fmt: skip
        async with side.service(entry):
            for title, level, resolved in (("Slow", "WARNING", False), ("Slower", "CRITICAL", False), ("Fine", "INFO", True)):
                await side.raise_alert(title, incident="t1.slow", level=level, resolved=resolved, value=4.5, event_id=title)
                await eventually(lambda title=title: side.delivered(title, "pagerduty"))
    bodies = [got.body for got in duty.got]
    assert [body["event_action"] for body in bodies] == ["trigger", "trigger", "resolve"]
    assert {body["dedup_key"] for body in bodies} == {"cypria.t1.slow"}
    assert [body["payload"]["severity"] for body in bodies[:2]] == ["warning", "critical"]
    assert bodies[0]["payload"]["custom_details"]["value"] == 4.5


async def test_pagerdutys_answers() -> None:
    async with Receiver(events_v2).running() as duty:
        one = PagerDutyDestination(channel(type="pagerduty", integration_key=KEY, url=duty.url))
        long = an_alert(title="x" * 5000, incident="y" * 5000)
        assert await one.deliver(long, "e1") == Sent()
        assert await one.probe(an_alert(level="INFO"), "e2") == Sent()
        assert [got.body["event_action"] for got in duty.got] == ["trigger", "trigger", "resolve"]
        duty.reply = lambda _n, _got: (429, {}, {"Retry-After": "7"})
        slower = await one.deliver(an_alert(), "e3")
        assert (isinstance(slower, Retry), getattr(slower, "after_s", 0)) == (True, 7)
        duty.reply = lambda _n, _got: (503, {}, {})
        assert isinstance(await one.deliver(an_alert(), "e3"), Retry)
        duty.reply = lambda _n, _got: (302, {}, {"Location": f"{duty.url}/elsewhere"})
        assert isinstance(await one.deliver(an_alert(), "e3"), Retry), "the key goes nowhere else"
        duty.reply = events_v2
        bad = PagerDutyDestination(channel(type="pagerduty", integration_key="short", url=duty.url))
        refused = await bad.deliver(an_alert(), "e4")
        assert isinstance(refused, Refused)
        assert refused.reason.endswith("it does not take what it got: check url and integration_key")
    assert all(got.path != "/elsewhere" for got in duty.got)
    assert isinstance(await one.deliver(an_alert(), "e5"), Retry)
    await one.close()
    await bad.close()


async def test_slacks_bot_posts_to_its_channel_and_says_in_slacks_word_why_not(side: Side) -> None:
    async with Receiver(lambda _n, _got: (200, {"ok": True}, {})).running() as slack:
        entry = {"type": "slack", "channel": "#ml-ops", "token": "xoxb-hidden", "url": f"{slack.url}/api"}
        async with side.service(entry):
            await side.raise_alert("Too slow")
            await eventually(lambda: side.delivered("Too slow", "slack"))
        (got,) = slack.got
        assert got.path == "/api/chat.postMessage"
        assert got.headers["Authorization"] == "Bearer xoxb-hidden"
        assert got.body["channel"] == "#ml-ops"
        assert "Too slow" in str(got.body["blocks"])
        one = SlackBotDestination(channel(**entry))
        answers = [
            (200, {"ok": False, "error": "channel_not_found"}, Refused, "channel_not_found: check channel, and invite the bot"),
            (200, {"ok": False, "error": "invalid_auth"}, Refused, "invalid_auth: set token to a bot token"),
            (200, {"ok": False, "error": "internal_error"}, Retry, "internal_error: this passes"),
            (429, {"ok": False, "error": "ratelimited"}, Retry, "(ratelimited): too many messages"),
            (500, {}, Retry, "HTTP 500 from 127.0.0.1"),
        ]
        slack.reply = lambda _n, got: (
            (200, {"ok": False, "error": "duplicate_message_not_found"}, {}) if "client_msg_id" in got.body
            else (200, {"ok": True}, {})
        )  # fmt: skip
        assert await one.deliver(an_alert(), "e1") == await one.deliver(an_alert(), "e1", repeat=True) == Sent()
        ids = [got.body.get("client_msg_id") for got in slack.got[1:]]
        assert (ids[0], ids[1]) == (ids[2], None), "a repetition has the id of the first"
        for status, body, kind, words in answers:
            slack.reply = lambda _n, _got, s=status, b=body: (s, b, {"Retry-After": "3"} if s == 429 else {})
            outcome = await one.deliver(an_alert(), "e1")
            assert isinstance(outcome, kind)
            assert words in outcome.reason


async def test_a_webhook_is_a_signed_cloudevent_that_cannot_be_replayed_or_changed(side: Side) -> None:
    async with Receiver().running() as receiver:
        entry = {"type": "webhook", "url": f"{receiver.url}/in?key=1", "secret": "shared"}
        async with side.service(entry):
            event_id = await side.raise_alert("Too slow", test_id="t1")
            await eventually(lambda: side.delivered("Too slow", "webhook"))
        (got,) = receiver.got
        assert got.headers["Content-Type"] == "application/cloudevents+json"
        assert (got.body["id"], got.body["type"], got.body["subject"]) == (event_id, "cypria.alert.v1", "t1")
        stamp, signature = int(got.headers["Cypria-Timestamp"]), got.headers["Cypria-Signature"]
        now = time.time()
        assert verify("shared", stamp, event_id, got.raw, signature, now)
        assert not verify("other", stamp, event_id, got.raw, signature, now)
        assert not verify("shared", stamp, event_id, got.raw + b" ", signature, now)
        assert not verify("shared", stamp, "another", got.raw, signature, now)
        assert not verify("shared", stamp + 1, event_id, got.raw, signature, now)
        assert not verify("shared", stamp, event_id, got.raw, signature, now + TOLERANCE_S + 2)
        receiver.reply = lambda _n, _got: (401, {}, {})
        one = WebhookDestination(channel(**entry))
        refused = await one.deliver(an_alert(), "e1")
        assert isinstance(refused, Refused)
        assert refused.reason.endswith("it does not let us in: check secret, which the receiver must have as well")
        assert "/in" not in refused.reason
        await one.close()


async def test_any_apprise_url_is_a_destination(side: Side) -> None:
    async with Receiver().running() as receiver:
        url = receiver.url.replace("http://", "json://") + "/hook"
        async with side.service({"type": "apprise", "url": url}):
            await side.raise_alert("Too slow", test_id="t1")
            await eventually(lambda: side.delivered("Too slow", "apprise"))
        (got,) = receiver.got
        assert "CRITICAL: Too slow" in got.body["title"]
        assert "t1" in got.body["message"]
        assert got.body["type"] == "failure"
        receiver.reply = lambda _n, _got: (500, {}, {})
        one = AppriseDestination(channel(type="apprise", url=url))
        assert isinstance(await one.deliver(an_alert(), "e1"), Retry)
    with pytest.raises(ConfigError, match="Apprise does not know") as caught:
        AppriseDestination(channel(type="apprise", url="nonsense://secret"))
    assert "secret" not in str(caught.value)


async def test_a_real_pushgateway_gets_totals_times_and_active_incidents(side: Side) -> None:
    with pushgateway() as url:
        await until_up(url)
        entry = {"type": "prometheus", "pushgateway_url": url, "job_name": "aphrodite-ab-testing"}
        async with side.service(entry):
            await side.raise_alert("Slow", incident="t1.slow", test_id="t1")
            await side.raise_alert("Slow again", incident="t1.slow", test_id="t1", event_id="again")
            await side.raise_alert("Drift", incident="t1.drift", test_id="t1", event_id="drift")
            await eventually(lambda: side.delivered("Drift", "prometheus"))
            series = await scrape(url)
            labels = 'instance="",job="aphrodite-ab-testing"'
            assert series[f'cypria_alerts_total{{{labels},level="CRITICAL",test_id="t1"}}'] == 2
            assert series[f'cypria_incidents_active{{{labels},test_id="t1"}}'] == 2
            assert abs(series[f'cypria_alert_last_timestamp_seconds{{{labels},test_id="t1"}}'] - time.time()) < 600
            await side.raise_alert("Fine", incident="t1.slow", test_id="t1", resolved=True, event_id="fine")
            await eventually(lambda: side.delivered("Fine", "prometheus"))
            assert (await scrape(url))[f'cypria_incidents_active{{{labels},test_id="t1"}}'] == 1
        async with side.service(entry):
            await side.raise_alert("After a restart", test_id="t1")
            await eventually(lambda: side.delivered("After a restart", "prometheus"))
        assert (await scrape(url))[f'cypria_alerts_total{{{labels},level="CRITICAL",test_id="t1"}}'] == 3


async def test_prometheus_scrapes_what_three_replicas_pushed_and_sees_what_the_history_says(
    side: Side, tmp_path: Path
) -> None:
    (scraping,) = re.findall(r"```yml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with pushgateway() as gateway:
        await until_up(gateway)
        config = scraping.replace("pushgateway:9091", gateway.removeprefix("http://"))
        config = f"global: {{scrape_interval: 500ms}}\n{config}"
        with prometheus(tmp_path, config) as server:
            await until_up(server)
            entry = {"type": "prometheus", "pushgateway_url": gateway, "job_name": "team/a-b tests"}
            async with side.service(entry), side.service(entry), side.service(entry):
                for number in range(24):
                    incident, resolved = f"t{number % 3}.{number // 6}", number % 6 > 2
                    await side.raise_alert(
                        f"n{number}", incident=incident, test_id=f"t{number % 3}", resolved=resolved, event_id=f"e{number}"
                    )
                await eventually(side.consumers_idle)
                expected = {f"t{test} CRITICAL": 4.0 for test in range(3)}

                async def scraped() -> bool:
                    totals = await queried(server, 'cypria_alerts_total{job="team/a-b tests",level="CRITICAL"}')
                    active = await queried(server, "cypria_incidents_active")
                    return totals == expected and set(active.values()) == {0.0}

                await eventually(scraped)
                raised = await queried(server, "cypria_alert_last_timestamp_seconds")
                assert all(abs(value - time.time()) < 600 for value in raised.values())


async def test_a_pushgateway_that_is_not_there_is_tried_again(side: Side) -> None:
    async with side.service({"type": "prometheus", "pushgateway_url": "http://127.0.0.1:9"}):
        reply = await side.router.request("cypria.alerts.test", b"{}", timeout=25)
    (one,) = json.loads(reply.data)["destinations"]
    assert (one["outcome"], one["type"]) == ("failed", "prometheus")
    assert one["reason"] == "127.0.0.1:9 refuses connections: nothing listens there; start it, or check pushgateway_url"
