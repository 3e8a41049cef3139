"""Feedback through a real router: who may give it, what of it reaches METRICS, and when it is confirmed."""

import asyncio
import json
from typing import Any

import httpx

from schemas import subjects
from schemas.v1.facts import Feedback
from tests.harness import NatsServer, eventually
from tests.service.router.rig import SECURITY, Rig, bearer, running


async def give(rig: Rig, role: str | None = "client", **body: Any) -> httpx.Response:
    headers = bearer(role) if role else {"Authorization": ""}
    return await rig.client.post("/v1/ab-testing/feedback", json=body, headers=headers)


async def heard(rig: Rig) -> list[Feedback]:
    return [said for batch in await rig.batches() for said in batch.feedback]


async def test_what_was_confirmed_is_in_metrics_with_what_the_response_was_assigned_to(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=100)
    own = await rig.post(headers={"X-Session-ID": "s1"})
    alone = await rig.post()
    token = own.headers["x-ab-feedback-token"]
    for body in ({"thumbs": "down", "score": 1.5}, {"thumbs": "up"}):
        reply = await give(rig, token=token, **body)
        assert (reply.status_code, reply.json()) == (200, {"status": "recorded"})
    assert (await give(rig, token=alone.headers["x-ab-feedback-token"], converted=False)).status_code == 200
    (fact,) = [fact for fact in await rig.facts() if fact.sticky]
    everything = await heard(rig)
    first, again = [said for said in everything if said.sticky]
    (other,) = [said for said in everything if not said.sticky]
    assert (first.test, first.variant, first.share_bp, first.unit) == (test_id, "b", 10_000, fact.unit)
    assert (first.thumbs_up, first.score_micro, first.converted) == (False, 1_500_000, None)
    assert (again.id, again.thumbs_up) == (first.id, True)
    assert other.id != first.id
    assert other.converted is False
    text = json.dumps([batch.model_dump(mode="json") for batch in await rig.batches()])
    assert "s1" not in text
    assert token not in text
    for batch in await rig.batches():
        if batch.feedback:
            assert batch.tests[test_id].epoch_seconds > 0
            assert all(int(said.unit, 16) % subjects.PARTITIONS == batch.partition for said in batch.feedback)


async def test_every_role_may_speak_and_nobody_without_a_key(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.start_test(traffic_split_percent=0)
    token = (await rig.post()).headers["x-ab-feedback-token"]
    for role in ("client", "viewer", "admin"):
        assert (await give(rig, role, token=token, thumbs="up")).status_code == 200
    assert (await give(rig, None, token=token, thumbs="up")).status_code == 401
    assert (await give(rig, token="x.y", thumbs="up")).status_code == 400
    assert (await give(rig, token="é.a", thumbs="up")).status_code == 400
    assert (await give(rig, token=token)).status_code == 422
    assert len(await heard(rig)) == 3


async def test_the_bus_takes_feedback_too(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.start_test(traffic_split_percent=0)
    token = (await rig.post()).headers["x-ab-feedback-token"]
    nc = await rig.nats.connect("caller")
    try:
        body = json.dumps({"token": token, "converted": True}).encode()
        headers = {"Authorization": "Bearer client-key"}
        reply = await nc.request("cypria.control.feedback", body, timeout=20, headers=headers)
        assert (reply.headers or {})["Cypria-Status"] == "200"
        assert json.loads(reply.data) == {"status": "recorded"}
    finally:
        await nc.close()
    assert [said.converted for said in await heard(rig)] == [True]


async def test_feedback_has_the_limit_of_inference_not_that_of_control(nats_server: NatsServer) -> None:
    limits = {"rate_limit": {"control_per_minute": 1, "control_burst": 2, "inference_per_minute": 36}}
    async with running(nats_server, security={**SECURITY, **limits}) as rig:
        await rig.worker("stable")
        await rig.start_test(traffic_split_percent=0)
        token = (await rig.post()).headers["x-ab-feedback-token"]
        replies = await asyncio.gather(*(give(rig, token=token, thumbs="up") for _ in range(20)))
        statuses = [reply.status_code for reply in replies]
        assert statuses.count(200) >= 6
        assert set(statuses) == {200, 429}
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 429)


async def test_what_could_not_be_stored_is_not_confirmed_and_counts_once_when_it_is_sent_again(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.start_test(traffic_split_percent=0)
    token = (await rig.post()).headers["x-ab-feedback-token"]
    rig.nats.kill()
    refused = await give(rig, token=token, thumbs="up")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    rig.nats.start()
    await eventually(lambda: "bus" not in rig.path.degraded())
    assert (await give(rig, token=token, thumbs="up")).status_code == 200
    assert len({said.id for said in await heard(rig)}) == 1
