"""Documentation, live events, configuration and models over HTTP."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import uvicorn

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.query import AlertsReply, AuditReply, HistoryReply
from services.router.control.verbs import EVENTS, VERBS
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Others, Side, others, side


@contextlib.asynccontextmanager
async def served(router: Side) -> AsyncIterator[str]:
    """The app on a real socket: an in-process client cannot read an endless reply."""
    server = uvicorn.Server(uvicorn.Config(router.control.app, port=0, log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        await router.control.parts.feed.stop()
        server.should_exit = True
        await task


async def test_events_arrive_live_and_the_stream_ends_with_the_router(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router, served(router) as url:
        seen: list[tuple[str, dict]] = []
        connected = asyncio.Event()

        async def watch() -> None:
            headers = {"Authorization": "Bearer secret-viewer"}
            async with (
                httpx.AsyncClient(timeout=60) as client,
                client.stream("GET", url + EVENTS.http_path, headers=headers) as reply,
            ):
                assert reply.headers["content-type"].startswith("text/event-stream")
                name = ""
                async for line in reply.aiter_lines():
                    if line == ": connected":
                        connected.set()
                    elif line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        seen.append((name, json.loads(line.removeprefix("data: "))))

        watching = asyncio.create_task(watch())
        await connected.wait()
        test_id = await router.start_test()
        nc = await nats_server.connect("monitor")
        alert = Alert(incident="i", level="WARNING", title="t", message="m", at_ms=1)
        await nc.publish(subjects.alert("WARNING"), dump(envelope("alert", "a1", "monitor", 1, alert)))
        await nc.close()
        nc = await nats_server.connect("metrics")
        cell = {"test": test_id, "variant": "b", "share_bp": 1000, "done": 3, "latency": {"n": 3, "total": 30}}
        await nc.publish(subjects.window(0), b'{"partition": 0, "cells": []}')
        await nc.publish(subjects.window(0), json.dumps({"partition": 0, "cells": [cell], "new_units": [{}]}).encode())
        await nc.close()
        await router.post("/rollback")
        await eventually(lambda: {"event", "alert", "window", "rollback"} <= {name for name, _ in seen})
        await eventually(lambda: "cypria.test.rolled_back.v1" in [data.get("type") for _, data in seen])
        (window,) = [data for name, data in seen if name == "window"]
        assert window["cells"][0]["done"] == 3
        assert "new_units" not in window
        await router.control.parts.feed.stop()
        await watching


async def test_the_api_describes_itself(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        document = (await router.http.get("/openapi.json")).json()
        for verb in (*VERBS, EVENTS):
            path = verb.http_path.replace(":path", "")
            operation = document["paths"][path][verb.method.lower()]
            assert {"200", "401", "403", "429"} <= set(operation["responses"])
            assert operation["security"] == [{"key": []}]
        start = document["paths"]["/v1/ab-testing/start"]["post"]["requestBody"]
        schema = start["content"]["application/json"]["schema"]
        assert schema["required"] == ["model_a", "model_b"]
        assert "$ref" not in json.dumps(schema)
        assert (await router.http.get("/docs")).status_code == 200


async def test_configuration_models_alerts_and_audit(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        config = await router.get("/config")
        assert config["security"]["rate_limit"]["control_per_minute"] == 0
        assert "secret" not in json.dumps(config).replace("secret_", "")
        models = (await router.get("/models", role="viewer"))["models"]
        assert [m["name"] for m in models] == ["stable", "canary", "other"]
        assert models[0]["digest"] == "sha256:stable"
        rest.answers[subjects.query("alerts")] = lambda q: AlertsReply(alerts=[{"n": q["limit"]}], total_alerts=9)
        rest.answers[subjects.query("audit")] = lambda q: AuditReply(records=[{"actor": q["actor"]}])
        alerts = await router.get("/monitoring/alerts", params={"limit": 7}, role="viewer")
        assert alerts == {"alerts": [{"n": 7}], "total_alerts": 9}
        assert (await router.get("/audit", params={"actor": "ops"}))["records"] == [{"actor": "ops"}]
        rest.answers[subjects.query("history")] = lambda q: HistoryReply(tests=[], total_tests=q["limit"])
        assert (await router.get("/history", params={"limit": 20, "offset": 1000}))["total_tests"] == 20


async def test_a_model_is_loaded_by_inference(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        reply = await router.call("POST", "/models/canary/load")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "inference_away")
        inference = Others()
        inference.answers[subjects.models("load")] = lambda q: AlertsReply(total_alerts=len(q["model"]))
        await inference.open(nats_server, ("inference", subjects.MODELS))
        assert (await router.post("/models/canary/load"))["total_alerts"] == 6
        assert (await router.call("POST", "/models/nobody/load")).status_code == 404
        await inference.close()


async def test_the_callers_request_id_is_kept_and_bad_ones_replaced(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        reply = await router.call("GET", "/status", headers={"X-Request-ID": "abc"})
        assert reply.headers["x-request-id"] == "abc"
        reply = await router.call("GET", "/status", headers={"X-Request-ID": "x" * 200})
        assert reply.headers["x-request-id"].startswith("req_")


async def test_a_slash_too_many_is_not_redirected(nats_server: NatsServer) -> None:
    """A redirect would name the caller's own Host, over plain HTTP, and take the key along."""
    async with side(nats_server) as router:
        reply = await router.call("GET", "/status/")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_path")
        assert "location" not in reply.headers
