"""Deliveries on a real nats-server to a real webhook."""

from typing import Any

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import AlertLevel, Decision, TestStatus
from schemas.v1.events import ModelState
from schemas.v1.experiment import RollbackOrder, TestResult, VerdictRecord
from services.alerts.domain.backoff import RetryPolicy
from tests.harness import eventually
from tests.service.alerts.side import Side


async def test_an_alert_reaches_slack_with_level_title_numbers_and_test(side: Side) -> None:
    async with side.service(side.slack(channel="#ops")):
        await side.raise_alert("Too slow", test_id="t9", rule="critical_latency", value=3100.5, threshold=3000, n=400)
        await eventually(lambda: side.delivered("Too slow"))
    (call,) = side.webhook.calls
    assert "CRITICAL: Too slow" in call.title
    assert call.body["channel"] == "#ops"
    text = str(call.body["blocks"])
    for part in ("t9", "critical_latency", "3100.5", "3000", "400", "Too slow."):
        assert part in text


async def test_a_failing_webhook_is_tried_again_until_it_takes_the_alert_once(side: Side) -> None:
    side.webhook.behave = lambda _path, n: {0: 500, 1: 429, 2: "hang"}.get(n, 200)
    async with side.service(side.slack()):
        await side.raise_alert("Later")
        await eventually(lambda: side.delivered("Later"))
    assert [call.answered for call in side.webhook.calls] == [500, 429, None, 200]


async def test_a_broken_destination_delays_no_other(side: Side) -> None:
    side.webhook.behave = lambda path, _n: "hang" if path == "broken" else 200
    async with side.service(side.slack("broken"), side.slack()):
        for number in range(5):
            await side.raise_alert(f"alert {number}")
        await eventually(lambda: len(side.webhook.accepted()) == 5 and side.webhook.of("broken"))
        assert len(side.webhook.of("broken")) == 1
        states = {d["destination"]: d["status"] for d in (await side.history())[0]["deliveries"]}
        assert states.get("broken", "sending") == "sending"


async def test_past_the_limit_a_delivery_is_dead_lettered_with_its_reason(side: Side) -> None:
    side.webhook.behave = lambda path, _n: 500 if path == "broken" else 200
    retry = RetryPolicy(first_s=0.02, cap_s=0.05, max_attempts=4)
    async with side.service(side.slack("broken"), side.slack(), retry=retry):
        await side.raise_alert("Nobody listens")
        (letter,) = await eventually(side.letters)
        await eventually(lambda: side.delivered("Nobody listens"))

        async def failed() -> Any:
            states = {d["destination"]: d for d in (await side.history())[0]["deliveries"]}
            return states["broken"]["status"] == "failed" and states["broken"]

        assert (await eventually(failed))["reason"].startswith("HTTP 500 from 127.0.0.1:")
    assert len(side.webhook.of("broken")) == 4
    assert letter.stream == "ALERTS"
    assert "destination broken: HTTP 500" in letter.reason
    assert letter.deliveries == 4


async def test_a_refused_payload_is_not_tried_again(side: Side) -> None:
    side.webhook.behave = lambda _path, n: 404 if n == 0 else 200
    async with side.service(side.slack()):
        await side.raise_alert("gone")
        assert "HTTP 404" in (await eventually(side.letters))[0].reason
        await side.raise_alert("back")
        await eventually(lambda: side.delivered("back"))
    assert len(side.webhook.calls) == 2


async def test_a_poison_message_goes_to_the_dlq_and_the_next_one_is_delivered(side: Side) -> None:
    poison = [b"\xff\xfe not json", b"{}", b'{"specversion":"1.0"}', b"[" * 5000]
    async with side.service(side.slack(), {"type": "log"}):
        for payload in poison:
            await side.publish(subjects.alert("critical"), payload)
        await side.raise_alert("after the poison")
        await eventually(lambda: side.delivered("after the poison"))
        await eventually(side.consumers_idle)
        letters = await side.letters()
    assert len(letters) == len(poison), "once each, however many destinations"
    assert all("not an alert" in letter.reason for letter in letters)


async def test_an_incident_is_told_once_for_each_rise_and_when_it_is_over(side: Side) -> None:
    async with side.service(side.slack()):
        for index, (level, resolved) in enumerate(
            [("WARNING", False), ("WARNING", False), ("CRITICAL", False), ("WARNING", False), ("INFO", True),
             ("INFO", True), ("WARNING", False)]
        ):  # fmt: skip
            await side.raise_alert(
                f"step {index}", incident="disk", level=AlertLevel(level), event_id=f"e{index}", resolved=resolved
            )
        await side.raise_alert("step 0", incident="disk", level=AlertLevel.WARNING, event_id="e0")
        await side.raise_alert("end")
        await eventually(lambda: side.delivered("end"))
        assert [call.title.split(": ", 1)[1] for call in side.webhook.calls] == [
            "step 0", "step 2", "step 4", "step 6", "end"
        ]  # fmt: skip
        assert [item["title"] for item in await side.history()] == ["end", "step 6", "step 4", "step 2", "step 0"]
        assert [item["repeats"] for item in await side.history()] == [0, 0, 0, 1, 1]


async def test_min_level_keeps_mild_alerts_from_a_destination(side: Side) -> None:
    async with side.service(side.slack(min_level="CRITICAL"), side.slack("all")):
        await side.raise_alert("mild", level=AlertLevel.WARNING)
        await side.raise_alert("severe", level=AlertLevel.EMERGENCY)
        await eventually(lambda: side.delivered("severe"))
        await eventually(lambda: side.delivered("mild", "all"))
    assert [call.title.split(": ")[1] for call in side.webhook.accepted()] == ["severe"]


async def test_starts_and_ends_of_tests_are_alerts_and_one_rollback_is_one_emergency(side: Side) -> None:
    verdict = VerdictRecord(
        decision=Decision.ROLLBACK, reason="errors of B above 10 %", rule="critical_error_rate", at_ms=1, value=0.4,
        bound=0.21, threshold=0.1, log_e=12.5, n_a=900, n_b=210,
    )  # fmt: skip
    order = RollbackOrder(
        rule=verdict.rule, reason=verdict.reason, actor="monitor", at_ms=1, decided_on=2, verdict=verdict
    )  # fmt: skip
    result = TestResult(test_id="t2", status=TestStatus.COMPLETED, decision=Decision.KEEP_A, reason="B is 3 % slower")
    async with side.service(side.slack()):
        await side.test_event("test.started")
        await eventually(lambda: side.delivered("Test started"))
        await side.raise_alert(
            "Rollback required: critical_error_rate", incident="t1.rollback.critical_error_rate.1", test_id="t1",
            level=AlertLevel.EMERGENCY,
        )  # fmt: skip
        await side.test_event("test.rolled_back", version=3, status=TestStatus.ROLLED_BACK, order=order)
        await side.test_event("test.completed", test_id="t2", version=9, status=TestStatus.COMPLETED, result=result)
        await eventually(lambda: side.delivered("Test completed"))
        await eventually(lambda: side.delivered("Rollback required: critical_error_rate"))
        await eventually(side.consumers_idle)
        items = await side.history(test_id="t1")
    assert [item["level"] for item in items] == ["EMERGENCY", "INFO"]
    titles = [call.title for call in side.webhook.accepted()]
    assert sum("EMERGENCY" in title for title in titles) == 1
    completed = next(call for call in side.webhook.accepted() if "Test completed" in call.title)
    assert "keep_a: B is 3 % slower" in str(completed.body["blocks"])


async def test_every_terminal_state_of_a_test_is_told_with_what_became_of_it(side: Side) -> None:
    def result(decision: Decision, reason: str, status: TestStatus = TestStatus.COMPLETED) -> TestResult:
        return TestResult(test_id="t1", status=status, decision=decision, reason=reason)

    order = RollbackOrder(rule="monitor_down", reason="no monitor has watched the test for 165 s", actor="router", at_ms=1)
    ends: dict[str, tuple[str, dict[str, Any], str]] = {
        "promoted": ("test.completed", {"result": result(Decision.PROMOTE_B, "B is 12 % better")}, "promote_b: B is 12 %"),
        "expired": ("test.completed", {"result": result(Decision.INCONCLUSIVE, "its time is over")}, "its time is over"),
        "stopped": ("test.completed", {"result": result(Decision.KEEP_A, "stopped by ops")}, "keep_a: stopped by ops"),
        "failed": ("test.failed", {"result": result(Decision.INCONCLUSIVE, "canary did not load", TestStatus.FAILED)},
                   "canary did not load"),
        "unwatched": ("test.rolled_back", {"order": order}, "no monitor has watched"),
        "by hand": ("test.rolled_back", {"reason": "looks odd"}, "looks odd"),
    }  # fmt: skip
    async with side.service(side.slack()):
        for name, (kind, fields, _) in ends.items():
            await side.test_event(kind, test_id=name, **fields)
        await eventually(lambda: len(side.webhook.accepted()) == len(ends))
        await eventually(side.consumers_idle)
    told = [str(call.body["blocks"]) for call in side.webhook.accepted()]
    for name, (_, _, words) in ends.items():
        assert sum(name in text and words in text for text in told) == 1, name


async def test_what_cannot_outlast_a_test_is_over_with_it_and_what_happened_stays(side: Side) -> None:
    lasting = ("stable.stable_bad.errors.1", "unwatched", "breaker", "warning.latency_increase.1", "no_data.no_data.1")
    async with side.service(side.slack()):
        for incident in (*lasting, "step_down.latency_increase.1"):
            await side.raise_alert(incident, incident=f"t1.{incident}", test_id="t1")
        await side.raise_alert("of another", incident="t2.unwatched", test_id="t2")
        await eventually(lambda: side.delivered("of another"))
        for _ in range(2):
            await side.test_event("test.completed", version=9, status=TestStatus.COMPLETED)
        await eventually(lambda: sum("RESOLVED" in call.title for call in side.webhook.accepted()) == len(lasting))
        await eventually(side.consumers_idle)
        ended = [item for item in await side.history() if item["resolved"]]
    assert {item["incident"] for item in ended} == {f"t1.{incident}" for incident in lasting}
    assert {item["message"] for item in ended} == {"the test has ended"}
    assert sum("RESOLVED" in call.title for call in side.webhook.accepted()) == len(lasting)


async def test_a_rollback_that_nobody_alerted_is_an_emergency_with_the_verdicts_numbers(side: Side) -> None:
    verdict = VerdictRecord(
        decision=Decision.ROLLBACK, reason="errors of B above 10 %", rule="critical_error_rate", at_ms=1, value=0.4,
        bound=0.21, threshold=0.1, log_e=12.5, n_a=900, n_b=210,
    )  # fmt: skip
    order = RollbackOrder(rule=verdict.rule, reason=verdict.reason, actor="monitor", at_ms=1, verdict=verdict)
    async with side.service(side.slack()):
        await side.test_event("test.rolled_back", version=3, status=TestStatus.ROLLED_BACK, order=order)
        await eventually(lambda: side.delivered("Canary rolled back"))
        await side.raise_alert("Rollback required", test_id="t1", level=AlertLevel.EMERGENCY)
        await side.raise_alert("end")
        await eventually(lambda: side.delivered("end"))
        (item,) = await side.history(test_id="t1")
    assert item["incident"] == "t1.rollback"
    assert item["level"] == "EMERGENCY"
    assert item["rule"] == "critical_error_rate"
    assert item["repeats"] == 1
    assert item["numbers"] == {
        "value": 0.4, "bound": 0.21, "threshold": 0.1, "n": 210, "log_e": 12.5, "n_a": 900, "n_b": 210,
        "split_percent": 20,
    }  # fmt: skip
    assert sum("EMERGENCY" in call.title for call in side.webhook.accepted()) == 1


async def test_a_model_that_fails_is_one_alert_until_it_is_ready_again(side: Side) -> None:
    worker = await side.server.connect("inference")
    number = 0

    async def becomes(state: str, reason: str = "") -> None:
        nonlocal number
        number += 1
        said = ModelState(model="canary", worker="w1", state=state, reason=reason, at_ms=number)
        event = dump(envelope("model.state", f"w1.{number}.model", "inference", number, said, "canary"))
        await worker.jetstream().publish(subjects.event("model.state"), event)

    async with side.service(side.slack()):
        await becomes("ready")
        await becomes("failed", "killed by signal 9")
        await eventually(lambda: side.delivered("Model failed: canary"))
        await becomes("loading")
        await becomes("failed", "killed by signal 9")
        await becomes("ready")
        await eventually(lambda: side.delivered("Model recovered: canary"))
        await becomes("failed", "the files have changed")
        await eventually(lambda: len([c for c in side.webhook.accepted() if "Model failed" in c.title]) == 2)
        items = await side.history()
    await worker.close()
    assert [item["title"].split(":")[0] for item in items] == ["Model failed", "Model recovered", "Model failed"]
    assert items[2]["message"] == "it is failed on worker w1: killed by signal 9"


async def test_the_history_is_newest_first_limited_and_says_what_is_wrong_with_a_question(side: Side) -> None:
    async with side.service(retention=3):
        for number in range(5):
            await side.raise_alert(f"n{number}", test_id="a" if number % 2 else "b")

        async def full() -> bool:
            return [item["title"] for item in await side.history()] == ["n4", "n3", "n2"]

        await eventually(full)
        assert [item["title"] for item in await side.history(limit=1)] == ["n4"]
        assert [item["title"] for item in await side.history(test_id="b")] == ["n4", "n2"]
        reply = await side.router.request(subjects.query("alerts"), b'{"limit": 0}', timeout=30)
        assert reply.headers["Cypria-Error"] == "1"
        assert b"limit" in reply.data


async def test_a_destination_added_later_gets_only_what_comes_later(side: Side) -> None:
    async with side.service(side.slack()):
        await side.raise_alert("old")
        await eventually(lambda: side.delivered("old"))
    async with side.service(side.slack(), side.slack("added")):
        await side.raise_alert("new")
        for destination in ("hook", "added"):
            await eventually(lambda destination=destination: side.delivered("new", destination))
    assert [call.title.split(": ")[1] for call in side.webhook.of("added")] == ["new"]
    assert len(side.webhook.accepted()) == 2
