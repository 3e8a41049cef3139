"""Requests through a real router, a real nats-server and workers that follow a script."""

import asyncio
import json
import socket

import pytest

from schemas.v1.common import Outcome
from services.router.edge import serve
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig, bearer, chat, events, running


async def test_answers_whole_and_streamed_with_the_bytes_untouched(rig: Rig) -> None:
    worker = await rig.worker("stable")
    body = b'{ "model":"stable",  "unknown": {"x":[1,2]}, "messages":[]}'
    response = await rig.client.post("/v1/chat/completions", content=body, headers={"X-Request-ID": "mine-1"})
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "hello"
    assert response.headers["x-request-id"] == "mine-1"
    assert "x-ab-test-id" not in response.headers
    assert worker.bodies == [body]
    assert worker.requests[0].route == "chat"

    streamed = await rig.post(stream=True)
    assert streamed.headers["content-type"] == "text/event-stream"
    assert len(events(streamed.text)) == 5
    assert events(streamed.text)[-1] == "[DONE]"
    assert streamed.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("path", "route"),
    [("/v1/completions", "completions"), ("/v1/embeddings", "embeddings"), ("/generate", "generate")],
)
async def test_every_inference_path_reaches_its_route(rig: Rig, path: str, route: str) -> None:
    worker = await rig.worker("stable")
    assert (await rig.client.post(path, json={"model": "stable", "prompt": "x"})).status_code == 200
    assert worker.requests[0].route == route


async def test_generate_without_a_model_means_the_first_configured_one(rig: Rig) -> None:
    worker = await rig.worker("stable")
    assert (await rig.client.post("/generate", json={"prompt": "x"})).status_code == 200
    assert len(worker.bodies) == 1


async def test_models_are_listed_and_found_by_name(rig: Rig) -> None:
    await rig.worker("org/model-1")
    listed = (await rig.client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["canary", "org/model-1", "stable"]
    assert (await rig.client.get("/v1/models/org/model-1")).json()["state"] == "ready"
    assert (await rig.client.get("/v1/models/none")).json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(("status", "outcome"), [(400, Outcome.CLIENT_ERROR), (418, Outcome.ERROR_BEFORE_FIRST_TOKEN),
                                                 (500, Outcome.ERROR_BEFORE_FIRST_TOKEN), (429, Outcome.REJECTED)])  # fmt: skip
async def test_an_engine_error_keeps_its_status_and_is_judged(rig: Rig, status: int, outcome: Outcome) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=0)
    response = await rig.post(mode=f"status:{status}", user="u")
    assert response.status_code == status
    assert response.json()["error"]["message"] == f"engine says {status}"
    assert response.headers["x-ab-test-id"] == test_id
    assert response.headers["x-ab-test-variant"] == "a"
    assert [fact.outcome for fact in await rig.facts()] == [outcome]


async def test_an_assigned_answer_says_so_and_yields_one_fact(rig: Rig) -> None:
    await rig.worker("stable")
    canary = await rig.worker("canary")
    test_id = await rig.start_test(traffic_split_percent=100)
    response = await rig.post(headers={"X-Session-ID": "s1"})
    assert response.json()["model"] == "canary"
    assert response.headers["x-ab-test-id"] == test_id
    assert response.headers["x-ab-test-variant"] == "b"
    assert len(canary.bodies) == 1
    (fact,) = await rig.facts()
    assert (fact.test, fact.variant, fact.share_bp, fact.outcome) == (test_id, "b", 10_000, Outcome.OK)
    assert fact.sticky
    assert fact.digest == "sha256:fake"
    assert (fact.prompt_tokens, fact.completion_tokens, fact.ttft_us, fact.cost_nano) == (3, 5, 900, 70)
    assert fact.latency_us
    assert "s1" not in json.dumps([batch.model_dump(mode="json") for batch in await rig.batches()])
    assert rig.path.in_flight(test_id) == {"a": 0, "b": 0}


async def test_the_same_unit_keeps_its_variant_and_precedence_holds(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=50)
    for number in range(20):
        seen = {
            (await rig.post(headers={"X-Session-ID": f"s{number}"}, user=f"other-{turn}")).headers["x-ab-test-variant"]
            for turn in range(3)
        }
        assert len(seen) == 1
    units = {fact.unit for fact in await rig.facts()}
    assert len(units) == 20


async def test_the_stable_model_serves_what_the_canary_cannot(rig: Rig) -> None:
    stable = await rig.worker("stable")
    await rig.worker("canary", mode="status:500")
    await rig.start_test(traffic_split_percent=100)
    response = await rig.post()
    assert response.status_code == 200
    assert response.json()["model"] == "stable"
    assert response.headers["x-ab-test-variant"] == "b"
    (fact,) = await rig.facts()
    assert (fact.variant, fact.outcome, fact.fallback) == ("b", Outcome.ERROR_BEFORE_FIRST_TOKEN, True)
    assert len(stable.bodies) == 1
    callers_own = await rig.post(mode="status:422")
    assert callers_own.status_code == 422


async def test_without_the_policy_the_canary_s_error_is_the_answer(nats_server: NatsServer) -> None:
    async with running(nats_server, policies={"fallback_to_stable": False}) as rig:
        await rig.worker("stable")
        await rig.worker("canary", mode="status:500")
        await rig.start_test(traffic_split_percent=100)
        assert (await rig.post()).status_code == 500
        (fact,) = await rig.facts()
        assert not fact.fallback


async def test_a_worker_that_refuses_or_dies_is_replaced_by_another(rig: Rig) -> None:
    await rig.worker("stable", mode="reset")
    await rig.worker("stable", mode="ok")
    answers = [(await rig.post()).status_code for _ in range(8)]
    assert answers == [200] * 8

    dying = await rig.worker("stable", mode="die")
    responses = await asyncio.gather(*(rig.post() for _ in range(12)))
    assert {response.status_code for response in responses} == {200}
    await eventually(lambda: dying.worker not in rig.path.table._models["stable"])


async def test_all_workers_refusing_is_told_with_their_own_words(rig: Rig) -> None:
    await rig.worker("stable", mode="reset")
    response = await rig.post()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "7"
    assert response.json()["error"]["message"] == "queue full"


async def test_a_canary_without_workers_is_charged_and_the_stable_model_serves(rig: Rig) -> None:
    await rig.worker("stable")
    canary = await rig.worker("canary")
    await rig.start_test(traffic_split_percent=100)
    await canary.stop()
    await eventually(lambda: rig.path.table.choose("canary") is None)
    response = await rig.post()
    assert response.json()["model"] == "stable"
    (fact,) = await rig.facts()
    assert (fact.outcome, fact.fallback) == (Outcome.REJECTED, True)


async def test_a_known_model_is_held_for_a_worker_to_return(rig: Rig) -> None:
    waiting = asyncio.create_task(rig.post())
    await eventually(lambda: rig.path.table._waiters)
    await rig.worker("stable")
    assert (await waiting).status_code == 200


async def test_a_known_model_without_workers_is_unavailable_in_the_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HOLD_S", 0.3)
    response = await rig.post()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "no_worker"


async def test_a_silent_engine_times_out(rig: Rig) -> None:
    await rig.worker("stable", timeout_ms=300)
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=0)
    response = await rig.post(mode="hang")
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout_error"
    assert [fact.outcome for fact in await rig.facts() if fact.kind == "final"] == [Outcome.TIMEOUT]


async def test_a_stream_that_stops_ends_with_an_error_event(rig: Rig) -> None:
    await rig.worker("stable", timeout_ms=300)
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=0)
    response = await rig.post(mode="slow:5", stream=True)
    assert response.status_code == 504  # nothing had come
    broken = await rig.post(mode="mid_error", stream=True)
    assert "engine broke" in events(broken.text)[-1]
    dead = await rig.post(mode="die_mid", stream=True)
    assert dead.status_code == 200
    assert json.loads(events(dead.text)[-1])["error"]["code"] in {"error_mid_stream", "timeout"}
    outcomes = sorted(fact.outcome for fact in await rig.facts() if fact.kind == "final")
    assert outcomes[0] == Outcome.ERROR_MID_STREAM
    assert outcomes[1] in {Outcome.ERROR_MID_STREAM, Outcome.TIMEOUT}
    assert outcomes[2] == Outcome.TIMEOUT


async def test_a_long_stream_is_overdue_while_it_runs_and_says_so_at_its_end(rig: Rig) -> None:
    worker = await rig.worker("stable", timeout_ms=700)
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=0)
    asked = asyncio.create_task(rig.post(mode="on_and_on:0.05", stream=True))
    await eventually(lambda: any(call.overdue for call in rig.path.arms._calls.values()))
    worker.told.set()
    assert events((await asked).text)[-1] == "[DONE]"
    overdue, final = sorted(await rig.facts(), key=lambda fact: fact.kind, reverse=True)
    assert (overdue.kind, final.kind) == ("overdue", "final")
    assert final.was_overdue
    assert final.outcome == Outcome.OK


async def test_a_client_that_hangs_up_cancels_the_generation(rig: Rig) -> None:
    worker = await rig.worker("stable")
    await rig.worker("canary")
    await rig.start_test(traffic_split_percent=0)
    asked = rig.client.stream("POST", "/v1/chat/completions", json=chat(mode="flood:100000", stream=True))
    async with asked as response:
        await anext(response.aiter_raw())
    await eventually(lambda: len(worker.cancelled) == 1 and worker.running == 0)
    hanging = asyncio.create_task(rig.post(mode="hang"))
    await eventually(lambda: worker.running == 1)
    hanging.cancel()
    await eventually(lambda: len(worker.cancelled) == 2 and worker.running == 0)
    await eventually(lambda: rig.path.client.open_streams == 0)
    assert [fact.outcome for fact in await rig.facts()] == [Outcome.CLIENT_CANCEL] * 2


async def test_credit_comes_back_as_the_client_reads(rig: Rig) -> None:
    worker = await rig.worker("stable")
    response = await rig.post(mode="flood:2000", stream=True)
    assert len(events(response.text)) == 2001
    await eventually(lambda: sum(worker.credited.values()) >= 2000 - 64)


async def test_a_client_that_does_not_read_holds_its_own_stream_only(rig: Rig) -> None:
    worker = await rig.worker("stable")
    body = json.dumps(chat(mode="big:100000000")).encode()
    sock = socket.create_connection(("127.0.0.1", rig.port))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer client-key\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await eventually(lambda: worker.running == 1)
        for _ in range(5):
            assert (await rig.post()).status_code == 200
        assert worker.running == 1
        assert sum(worker.credited.values()) < 100
    finally:
        sock.close()
    await eventually(lambda: worker.running == 0)


async def test_a_large_answer_arrives_whole(rig: Rig) -> None:
    await rig.worker("stable")
    response = await rig.post(mode="big:20000000")
    assert len(response.content) == 20_000_000


async def test_keep_alives_reach_a_worker_while_it_works(rig: Rig) -> None:
    worker = await rig.worker("stable", mode="hang")
    task = asyncio.create_task(rig.post())
    await eventually(lambda: worker.keepalives >= 2)
    task.cancel()
    await eventually(lambda: worker.cancelled)


async def test_roles_and_keys(rig: Rig) -> None:
    await rig.worker("stable")
    nobody = await rig.client.post("/v1/chat/completions", json=chat(), headers={"Authorization": ""})
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"].startswith("Bearer")
    stranger = await rig.client.post("/v1/chat/completions", json=chat(), headers={"Authorization": "Bearer x"})
    assert stranger.json()["error"]["code"] == "invalid_api_key"
    assert (await rig.client.post("/v1/chat/completions", json=chat(), headers=bearer("viewer"))).status_code == 200


async def test_operations_and_control_share_the_port(rig: Rig) -> None:
    await rig.worker("stable")
    await rig.post()
    assert (await rig.client.get("/health")).status_code == 200
    assert (await rig.client.get("/ready")).json() == {"status": "ready", "service": "router", "missing": {}}
    metrics = (await rig.client.get("/metrics")).text
    assert 'cypria_router_requests_total{route="chat",status="200",variant=""} 1.0' in metrics
    assert (await rig.client.get("/openapi.json")).status_code == 200
    assert (await rig.client.get("/nothing")).status_code == 404
