"""Report, evidence and replay over HTTP and on the bus, with the monitor's answers prepared."""

import asyncio
import json
from typing import Any

import pytest

from schemas import subjects
from schemas.v1.common import Decision
from schemas.v1.experiment import RollbackOrder, VariantSummary, VerdictRecord
from schemas.v1.query import AlertsReply, QueryError, TotalsReply
from schemas.v1.record import EvidenceReply, RecordReply, Replay, Report, Series, TestChange
from services._runtime.clock import now_ms
from services._runtime.tasks import end
from services.router.control import accounts, records
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Others, Side, others, side


def verdict(**fields: Any) -> VerdictRecord:
    base = {"decision": Decision.ROLLBACK, "reason": "errors rose", "rule": "error_rate_increase", "at_ms": 7000, "tick": 7,
            "log_e": 8.5, "n_a": 60, "n_b": 40, "details": {"windows_seq": 42}}  # fmt: skip
    return VerdictRecord(**(base | fields))


def answer(rest: Others, **fields: Any) -> None:
    def record(question: Any) -> RecordReply:
        changes = [TestChange(id="1", at_ms=1, kind="started")]
        return RecordReply(test_id=question["test_id"], changes=changes, **({"verdict": verdict()} | fields))

    rest.answers[subjects.verdict("record")] = record
    rest.answers[subjects.query("alerts")] = lambda _q: AlertsReply(alerts=[{"level": "INFO", "title": "t"}], total_alerts=3)


async def rolled_back(router: Side, record: VerdictRecord | None) -> str:
    """A test that ended by an order of the monitor's."""
    test_id = await router.start_test()
    order = RollbackOrder(rule="error_rate_increase", reason="errors rose", actor="monitor", at_ms=now_ms(), verdict=record)
    test = router.control.experiments.by_id(test_id)
    assert test is not None
    await router.control.parts.rollbacks.carry_out(test, order)
    return test_id


async def test_a_report_in_the_format_that_the_caller_accepts(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        answer(rest)
        test_id = await rolled_back(router, verdict())
        report = Report.model_validate(await router.get(f"/tests/{test_id}/report", role="viewer"))
        assert report.result.verdict == verdict()
        assert report.evidence == "complete"
        assert report.changes[0].kind == "started"
        assert report.notes == ["2 older alerts are not shown"]
        assert dict(rest.asked)[subjects.verdict("record")]["until"] == 42
        for accept, media in (("text/html", "text/html; charset=utf-8"), ("text/markdown", "text/markdown; charset=utf-8")):
            reply = await router.call("GET", f"/tests/{test_id}/report", headers={"Accept": accept})
            assert reply.headers["content-type"] == media
            assert reply.headers["vary"] == "Accept"
            assert "error_rate_increase" in reply.text
            assert "content-security-policy" in reply.headers
        assert (await router.call("GET", f"/tests/{test_id}/report", role="client")).status_code == 403
        assert (await router.call("GET", f"/tests/{test_id}/report", role=None)).status_code == 401
        assert (await router.call("GET", "/tests/nope/report")).status_code == 404


async def test_a_report_says_what_nobody_could_tell(nats_server: NatsServer) -> None:
    async with others(nats_server, monitor=False) as rest, side(nats_server) as router:
        rest.answers[subjects.query("alerts")] = lambda _q: QueryError(message="still starting")
        test_id = await rolled_back(router, verdict())
        report = Report.model_validate(await router.get(f"/tests/{test_id}/report"))
        assert report.evidence == "away"
        assert report.configuration is not None
        assert report.configuration.salt == ""
        assert [note.partition(":")[0] for note in report.notes] == ["evidence and timeline", "alerts"]
        assert (await router.call("GET", f"/tests/{test_id}/replay")).status_code == 503


async def test_a_test_in_words_and_over_time(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        answer(rest, series=Series(seconds=[1, 2]), recent=Series(seconds=[2]))
        test_id = await router.start_test()
        told = await router.get(f"/tests/{test_id}/summary", role="viewer")
        assert (told["live"], told["status"], told["model_b"], told["notes"]) == (True, "running", "canary", ["2 older alerts are not shown"])
        assert {"started", "alert."} == {one["kind"] for one in told["timeline"]}
        for span, seconds in (("whole", [1, 2]), ("recent", [2])):
            shown = await router.get(f"/tests/{test_id}/series", params={"span": span}, role="viewer")
            assert (shown["state"], shown["series"]["seconds"]) == ("complete", seconds)
        refused = await router.call("GET", f"/tests/{test_id}/series?span=all")
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "span")
        await router.post("/rollback", {"reason": "lunch"})
        told = await router.get(f"/tests/{test_id}/summary", role="viewer")
        assert (told["live"], told["status"], told["why"]["text"], told["actions"]) == (False, "rolled_back", "Lunch.", [])
        assert (await router.call("GET", f"/tests/{test_id}/summary", role="client")).status_code == 403
        for what in ("summary", "series"):
            assert (await router.call("GET", f"/tests/nope/{what}")).status_code == 404


async def test_who_cannot_tell_is_named_beside_what_is_known(nats_server: NatsServer) -> None:
    async with others(nats_server, monitor=False) as rest, side(nats_server) as router:
        rest.answers[subjects.query("alerts")] = lambda _q: QueryError(message="still starting")
        test_id = await router.start_test()
        told = await router.get(f"/tests/{test_id}/summary")
        assert [note.partition(":")[0] for note in told["notes"]] == ["time line", "alerts"]
        assert told["safety"]["text"].startswith("Nothing is known of the guardrails")
        assert (await router.call("GET", f"/tests/{test_id}/series")).status_code == 503


def asked(rest: Others, subject: str) -> list[Any]:
    return [question for to, question in rest.asked if to == subject]


async def test_many_pages_cost_the_monitor_one_question_and_a_slow_one_holds_up_nobody(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (accounts, records):
        monkeypatch.setattr(module, "TOLD_HELD_S", 60)  # however slow the machine
    async with others(nats_server) as rest, side(nats_server) as router:
        answer(rest, series=Series(seconds=[1]))
        record = subjects.verdict("record")
        prepared = rest.answers[record]
        slow, quick = await router.start_test(), await router.start_test(model_a="other")
        # 50 pages ask for the same chart, and the monitor does not answer; the one that asked first hangs up.
        rest.answers[record] = lambda q: None if q["test_id"] == slow else prepared(q)
        pages = [asyncio.create_task(router.get(f"/tests/{slow}/series")) for _ in range(50)]
        await eventually(lambda: asked(rest, record))
        pages[0].cancel()
        assert (await router.get(f"/tests/{quick}/series"))["state"] == "complete"
        assert [one["test_id"] for one in asked(rest, record)] == [slow, quick]
        await end(*pages)
        # A time line asks for nothing else, once for all who look.
        rest.asked.clear()
        told = await asyncio.gather(*(router.get(f"/tests/{quick}/summary") for _ in range(8)))
        assert {[each["kind"] for each in one["timeline"]].count("started") for one in told} == {1}
        (question,) = asked(rest, record)
        assert question["evidence"] is False
        for subject in (subjects.query("alerts"), subjects.verdict("status")):
            assert len(asked(rest, subject)) == 1, subject
        assert asked(rest, subjects.query("totals")) == []  # the chart has asked for them


async def test_a_picture_of_all_tests_asks_for_their_totals_once(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        ids = [await router.start_test(), await router.start_test(model_a="other")]
        rest.asked.clear()
        picture = json.loads(await accounts.Accounts(router.control.parts).snapshot())
        assert {one["test_id"] for one in picture["tests"]} == set(ids)
        assert [sorted(question["tests"]) for question in asked(rest, subjects.query("totals"))] == [sorted(ids)]
        assert sorted(question["test_id"] for question in asked(rest, subjects.verdict("status"))) == sorted(ids)


async def test_totals_that_lag_give_way_to_the_evidence(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        rest.answers[subjects.query("totals")] = lambda _q: TotalsReply()
        answer(rest, metrics_summary={"b": VariantSummary(request_count=40, outcomes={"timeout": 40})})
        test_id = await rolled_back(router, verdict())
        report = Report.model_validate(await router.get(f"/tests/{test_id}/report"))
        assert report.result.metrics_summary["variant_b"].outcomes == {"timeout": 40}


@pytest.mark.parametrize(("fields", "same", "word"), [
    ({}, True, ""),
    ({"verdict": verdict(log_e=8.5000001)}, False, "ln E: recorded 8.5, replayed 8.5000001"),
    ({"verdict": verdict(tick=9)}, False, "tick: recorded 7, replayed 9"),
    ({"state": "reading", "progress": 0.4}, None, ""),
    ({"state": "gone", "message": "aged out", "verdict": None}, None, ""),
])  # fmt: skip
async def test_a_replay_compares(nats_server: NatsServer, fields: dict[str, Any], same: bool | None, word: str) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        answer(rest, **fields)
        test_id = await rolled_back(router, verdict())
        replay = Replay.model_validate(await router.get(f"/tests/{test_id}/replay", role="viewer"))
        assert replay.same is same
        assert "; ".join(replay.differences) == word
        assert replay.recorded == verdict()
        assert (replay.replayed is not None) == (same is not None)
        assert replay.state == fields.get("state", "complete")


async def test_a_decision_of_people_has_nothing_to_derive_anew(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        test_id = await router.start_test()
        reply = await router.call("GET", f"/tests/{test_id}/replay")
        assert reply.status_code == 409
        assert reply.json()["error"]["code"] == "no_verdict"
        await router.post("/rollback", {"reason": "lunch"})
        replay = await router.get(f"/tests/{test_id}/replay")
        assert replay["same"] is None
        assert "nothing to derive anew" in replay["message"]
        recorded = replay["recorded"]
        assert (recorded["rule"], recorded["reason"], recorded["split_bp"]) == ("operator", "lunch", 1000)
        assert recorded["config_hash"].startswith("sha256:")
        assert recorded["digests"] == {"a": "sha256:stable", "b": "sha256:canary"}


async def test_evidence_goes_through_page_by_page_and_says_when_it_is_gone(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        test_id = await rolled_back(router, verdict())
        test = router.control.experiments.by_id(test_id)
        assert test is not None
        rest.answers[subjects.verdict("evidence")] = lambda q: EvidenceReply(
            test_id=q["test_id"], configuration=test.configuration, last=q["after"] + q["limit"]
        )
        page = await router.get(f"/tests/{test_id}/evidence?after=5&limit=10", role="viewer")
        assert page["last"] == 15
        assert dict(rest.asked)[subjects.verdict("evidence")]["until"] == 42
        assert (await router.call("GET", f"/tests/{test_id}/evidence?limit=0")).status_code == 422
        rest.answers[subjects.verdict("evidence")] = lambda _q: QueryError(message="aged out", code="evidence_gone")
        gone = await router.call("GET", f"/tests/{test_id}/evidence")
        assert gone.status_code == 410
        assert gone.json()["error"]["message"] == "aged out"


async def test_a_report_on_the_bus_in_the_format_asked_for(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        answer(rest)
        test_id = await rolled_back(router, verdict())
        caller = await nats_server.connect("caller")
        headers = {"Authorization": "Bearer secret-viewer"}

        async def ask() -> Any:
            body = json.dumps({"test_id": test_id, "accept": "text/markdown"}).encode()
            return await caller.request(subjects.control("report"), body, headers=headers, timeout=60)

        reply = await eventually(ask)
        assert reply.headers["content-type"] == "text/markdown; charset=utf-8"
        assert reply.data.startswith(b"# Rolled back")
        await caller.close()
