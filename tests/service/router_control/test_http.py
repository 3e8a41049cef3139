"""Documentation, live events, configuration and models over HTTP."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import uvicorn
import yaml

from schemas import subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.query import AlertsReply, AuditReply, HistoryReply
from services.router.control.verbs import EVENTS, VERBS
from tests.harness import NatsServer, eventually
from tests.service.router_control.sides import Side, others, side, stream_messages


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


def references(node: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def unresolved(document: dict[str, Any]) -> set[str]:
    found = set()
    for reference in references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node.get(part.replace("~1", "/")) if isinstance(node, dict) else None
        if node is None:
            found.add(reference)
    return found


async def test_the_api_describes_itself(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        document = (await router.http.get("/openapi.json")).json()
        assert not unresolved(document)
        operations = []
        for verb in (*VERBS, EVENTS):
            path = verb.http_path.replace(":path", "")
            operation = document["paths"][path][verb.method.lower()]
            operations.append(operation["operationId"])
            assert {"200", "401", "403", "405", "422", "429", "500", "503", *map(str, verb.errors)} <= set(operation["responses"])
            assert ("413" in operation["responses"]) is (verb.method != "GET")
            assert operation["security"] == [{"key": []}]
            if "requestBody" in operation:  # what a person tries first is taken as it stands
                in_path = dict.fromkeys((name for name in verb.takes.model_fields if "{" + name in verb.path), "x")
                verb.takes.model_validate(operation["requestBody"]["content"]["application/json"]["example"] | in_path)
        assert len(operations) == len(set(operations))
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/generate"):
            operation = document["paths"][path]["post"]
            assert {"200", "400", "401", "404", "413", "429", "503", "504"} <= set(operation["responses"])
            assert {"X-AB-Test-ID", "X-AB-Test-Variant", "X-AB-Feedback-Token"} <= set(operation["responses"]["200"]["headers"])
        for path in ("/v1/models", "/v1/models/{model}", "/health", "/ready", "/metrics", "/asyncapi.yaml"):
            assert "200" in document["paths"][path]["get"]["responses"]
        start = document["paths"]["/v1/ab-testing/start"]["post"]["requestBody"]
        schema = start["content"]["application/json"]["schema"]
        assert schema["required"] == ["model_a", "model_b"]
        assert "$ref" not in json.dumps(schema)
        (interval,) = document["paths"]["/v1/ab-testing/monitoring/start"]["post"]["parameters"]
        assert (interval["in"], interval["name"]) == ("query", "check_interval_seconds")
        page = await router.http.get("/docs")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        loaded = re.findall(r"""(?:src|href|url)["'=: ]+([^"'> ]+)""", page.text)
        assert len(loaded) >= 4
        for path in loaded:  # a page on which keys are typed loads nothing from anywhere else
            assert path.startswith("/"), path
            assert (await router.http.get(path)).status_code == 200, path


async def test_the_bus_describes_itself(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        reply = await router.http.get("/asyncapi.yaml")
        assert (reply.status_code, reply.headers["content-type"]) == (200, "application/yaml")
    document = yaml.safe_load(reply.text)
    assert document["asyncapi"] == "3.0.0"
    assert not unresolved(document)
    channels = document["channels"]
    addresses = [channel["address"] or "" for channel in channels.values()]
    for pattern in subjects.PATTERNS:
        assert any(address.startswith(pattern.rstrip("*>")) for address in addresses), pattern
    for verb in VERBS:
        operation = document["operations"][f"control.{verb.name}"]
        assert operation["reply"]["messages"]
        assert channels[f"control.{verb.name}"]["address"] == subjects.control(verb.name)
        assert f"role: {verb.role.label}" in operation["summary"]
    assert channels["metric"]["description"] == "Sent by: router. Kept in the stream METRICS."
    assert channels["control.start"]["description"] == "Sent by: caller."
    assert "cypria.test.rolled_back.v1" in channels["event"]["messages"]
    assert set(document["operations"]) == set(channels) - {"inbox"}


async def test_reading_takes_head_as_well_and_other_methods_are_named(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router:
        head = await router.call("HEAD", "/status")
        assert (head.status_code, head.headers["content-type"]) == (200, "application/json")
        assert (await router.call("HEAD", "/status", role="client")).status_code == 403
        for method, path, allowed in (("PUT", "/status", "GET, HEAD"), ("HEAD", "/start", "POST"), ("POST", "/events", "GET")):
            reply = await router.call(method, path)
            assert (reply.status_code, reply.headers["allow"]) == (405, allowed)


async def test_what_comes_later_says_so(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        for field in ("variants", "shadow", "baseline_percent"):
            reply = await router.call("POST", "/start", json={"model_a": "stable", "model_b": "canary", field: None})
            error = reply.json()["error"]
            assert (reply.status_code, error["param"], error["code"]) == (422, field, "later_version")
            assert f"{field} comes in a later version" in error["message"]


async def test_the_live_page_is_files_that_need_no_key(nats_server: NatsServer) -> None:
    async with side(nats_server) as router:
        page = await router.http.get("/dashboard")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        # Relative to the page's own address: a proxy may have put something before that.
        loaded = [f"/{path}" for path in re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text)]
        assert len(loaded) >= 6
        assert not re.findall(r'(?:src|href)="(?:/|\w+:)', page.text)
        scripts = [path.rsplit("/", 1)[-1] for path in loaded]
        for path in sorted({*loaded, *(f"/dashboard/static/{name}" for name in re.findall(r"import .* from \"./(.+)\"", await app_js(router)))}):
            reply = await router.http.get(path)
            assert reply.status_code == 200, path
            media = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[path.rsplit(".", 1)[-1]]
            assert reply.headers["content-type"].split(";")[0] == media, path
            again = await router.http.get(path, headers={"If-None-Match": reply.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), path
            for header in (page.headers, reply.headers, again.headers):
                assert header["cache-control"] == "no-cache"
                rules = dict(rule.split(" ", 1) for rule in header["content-security-policy"].split("; "))
                assert (rules["default-src"], rules["script-src"], rules["connect-src"]) == ("'none'", "'self'", "'self'")
                assert "unsafe" not in str(rules)
        assert "app.js" in scripts
        assert (await router.http.head("/dashboard")).status_code == 200
        again = await router.http.get("/dashboard?x=1", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for host in ("router", "evil.example", "evil.example:99999", "[::1"):  # it is nowhere in the answer
            moved = await router.http.request("HEAD", "/dashboard/?to=//evil.example", headers={"Host": host})
            assert (moved.status_code, moved.headers["location"]) == (307, "../dashboard?to=//evil.example")
        assert (await router.http.get("/dashboard/", follow_redirects=True)).text == page.text
        assert (await router.http.get("/dashboard/static/../routes.py")).status_code == 404
        assert (await router.http.get("/dashboard/nothing")).status_code == 404
        assert (await router.http.post("/dashboard")).status_code == 405


async def app_js(router: Side) -> str:
    return (await router.http.get("/dashboard/static/app.js")).text


async def test_who_looks_is_told_and_how_everything_stands_comes_live(nats_server: NatsServer) -> None:
    async with others(nats_server), side(nats_server) as router, served(router) as url:
        viewer = await router.get("/whoami", role="viewer")
        assert (viewer["name"], viewer["role"]) == ("viewer", "viewer")
        assert {"status", "events", "summary"} <= set(viewer["may"])
        assert not {"start", "rollback", "keys"} & set(viewer["may"])
        assert "rollback" in (await router.get("/whoami", role="operator"))["may"]
        assert (await router.get("/whoami", role="client"))["may"] == ["whoami", "feedback"]
        assert (await router.call("GET", "/events?live=perhaps")).status_code == 422
        test_id = await router.start_test()
        seen: list[tuple[str, dict[str, Any]]] = []
        headers = {"Authorization": "Bearer secret-viewer"}
        async with httpx.AsyncClient(timeout=60) as client, client.stream("GET", f"{url}{EVENTS.http_path}?live=true", headers=headers) as reply:
            name = ""
            async for line in reply.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    seen.append((name, json.loads(line.removeprefix("data: "))))
                    if len(seen) == 1:  # the picture comes first, and another one as soon as something happens
                        nc = await nats_server.connect("metrics")
                        cell = {"test": test_id, "variant": "b", "share_bp": 1000, "done": 3}
                        await nc.publish(subjects.window(0), json.dumps({"partition": 0, "cells": [cell]}).encode())
                        await nc.close()
                        await router.post("/rollback")
                    if any(kind == "event" for kind, _ in seen) and name == "live" and not seen[-1][1]["tests"]:
                        break
        assert seen[0][0] == "live"
        (told,) = seen[0][1]["tests"]
        assert (told["test_id"], told["headline"]) == (test_id, "canary is being served 10 % of stable's traffic.")
        assert [model["name"] for model in seen[0][1]["models"]] == ["canary", "other", "stable"]
        assert seen[0][1]["models"][2]["in_use_by"] == [test_id]
        assert [seen[0][1]["start"][name] for name in ("model_a", "model_b", "traffic_split_percent")] == ["other", None, 10.0]
        kinds = {name for name, _ in seen}
        assert "window" not in kinds
        assert kinds >= {"live", "event"}


async def test_bodies_that_cannot_be_taken_in_are_refused_and_audited(nats_server: NatsServer) -> None:
    async with side(nats_server, http={"max_body_bytes": 2048}) as router:
        packed = await router.call("POST", "/start", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        assert (packed.status_code, packed.json()["error"]["code"]) == (415, "unsupported_content_encoding")
        long = await router.call("POST", "/stop", content=b" " * 3000, role="operator")
        assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
        assert (await router.call("POST", "/stop", content=b" " * 3000, role=None)).status_code == 401

        async def audited() -> list[tuple[str, str, int]]:
            found = await stream_messages(nats_server, "metrics", "AUDIT", subjects.AUDIT)
            records = [json.loads(message.data)["data"] for message in found]
            return [(r["actor"], r["action"], r["status"]) for r in records] if len(records) == 3 else []

        assert await eventually(audited) == [("admin", "start", 415), ("operator", "stop", 413), ("anonymous", "stop", 401)]


async def test_configuration_models_alerts_and_audit(nats_server: NatsServer) -> None:
    async with others(nats_server) as rest, side(nats_server) as router:
        config = await router.get("/config")
        assert config["security"]["rate_limit"]["control_per_minute"] == 0
        assert "secret" not in json.dumps(config).replace("secret_", "")
        models = (await router.get("/models", role="viewer"))["models"]
        assert [m["name"] for m in models] == ["canary", "other", "stable"]
        assert models[2]["digest"] == "sha256:stable"
        rest.answers[subjects.query("alerts")] = lambda q: AlertsReply(alerts=[{"n": q["limit"]}], total_alerts=9)
        rest.answers[subjects.query("audit")] = lambda q: AuditReply(records=[{"actor": q["actor"]}])
        alerts = await router.get("/monitoring/alerts", params={"limit": 7}, role="viewer")
        assert alerts == {"alerts": [{"n": 7}], "total_alerts": 9}
        assert (await router.get("/audit", params={"actor": "ops"}))["records"] == [{"actor": "ops"}]
        rest.answers[subjects.query("history")] = lambda q: HistoryReply(tests=[], total_tests=q["limit"])
        assert (await router.get("/history", params={"limit": 20, "offset": 1000}))["total_tests"] == 20


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
