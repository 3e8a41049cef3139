"""Who may do what: every endpoint and every subject, with every role's key and with everything that is no good key.

The table is written from the contract, not from the code. What the router offers is enumerated from its OpenAPI document, its
routes and the list of subjects: an endpoint, verb or subject without a rule in the table fails.
"""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import nats
from starlette.routing import Mount, Route

from schemas import subjects
from services.router.control.verbs import BY_TOKEN
from services.router.domain.request import PATHS
from services.router.edge.http import MODELS_PATH
from services.router.handlers import ROUTES
from tests.harness import NatsServer, eventually
from tests.service.router.rig import Rig, running

API = "/v1/ab-testing"
ROLES = ("client", "viewer", "operator", "admin")
OPEN = "nobody"
"""No key is wanted."""


@dataclass(frozen=True)
class Rule:
    """The least role for an endpoint, ``METHOD path`` as the OpenAPI document has it, and for the same on the bus."""

    role: str
    endpoint: str | None
    verbs: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()


def verb(role: str, endpoint: str, *tokens: str) -> Rule:
    method, path = endpoint.split()
    return Rule(role, f"{method} {API}{path}", tokens)


RULES = (
    *(Rule(OPEN, f"GET {path}") for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/asyncapi.yaml", "/dashboard")),
    Rule("client", "POST /v1/chat/completions", requests=("chat",)),
    Rule("client", "POST /v1/completions", requests=("completions",)),
    Rule("client", "POST /v1/embeddings", requests=("embeddings",)),
    Rule("client", "POST /generate"),
    Rule("client", "GET /v1/models"),
    Rule("client", "GET /v1/models/{model}"),
    verb("client", "POST /feedback", "feedback"),
    verb("client", "GET /whoami", "whoami"),
    verb("viewer", "GET /status", "status"),
    verb("viewer", "GET /history", "history"),
    verb("viewer", "GET /tests/{test_id}", "tests", "test"),
    verb("viewer", "GET /tests/{test_id}/summary", "summary"),
    verb("viewer", "GET /tests/{test_id}/series", "series"),
    verb("viewer", "GET /tests/{test_id}/report", "report"),
    verb("viewer", "GET /tests/{test_id}/evidence", "evidence"),
    verb("viewer", "GET /tests/{test_id}/replay", "replay"),
    verb("viewer", "GET /monitoring/status", "monitoring-status"),
    verb("viewer", "GET /monitoring/alerts", "monitoring-alerts", "alerts"),
    verb("viewer", "GET /models", "models"),
    verb("viewer", "GET /models/{name}", "model"),
    verb("viewer", "POST /models/plan", "models-plan"),
    verb("viewer", "GET /integrations", "integrations"),
    verb("viewer", "GET /events"),
    verb("operator", "POST /start", "start"),
    verb("operator", "POST /stop", "stop"),
    verb("operator", "POST /rollback", "rollback"),
    verb("operator", "PATCH /traffic-split", "traffic-split", "split"),
    verb("operator", "POST /pause", "pause"),
    verb("operator", "POST /resume", "resume"),
    verb("operator", "POST /approve", "approve"),
    verb("operator", "POST /monitoring/start", "monitoring-start"),
    verb("operator", "POST /monitoring/stop", "monitoring-stop"),
    verb("admin", "GET /config", "config"),
    verb("admin", "GET /audit", "audit"),
    verb("admin", "GET /audit/verify", "audit-verify"),
    verb("admin", "GET /keys", "keys"),
    verb("admin", "POST /keys", "keys-create"),
    verb("admin", "POST /keys/{name}/rotate", "keys-rotate"),
    verb("admin", "POST /keys/{name}/revoke", "keys-revoke"),
    verb("admin", "POST /units/export", "units-export"),
    verb("admin", "POST /units/erase", "units-erase"),
    verb("admin", "POST /models", "models-register"),
    verb("admin", "POST /models/{name}/load", "models-load"),
    verb("admin", "POST /models/{name}/unload", "models-unload"),
    verb("admin", "DELETE /models/{name}", "models-remove"),
    verb("admin", "POST /alerts/test", "alerts-test"),
    verb("admin", "POST /alerts/redrive", "alerts-redrive"),
    verb("admin", "POST /integrations/test", "integrations-test"),
    verb("admin", "POST /integrations/redrive", "integrations-redrive"),
)

WITH_KEYS = {subjects.REQUEST, subjects.CONTROL}
CLOSED = {
    subjects.INFER, subjects.HEARTBEAT, subjects.FLOW, subjects.MODELS, subjects.QUERY, subjects.VERDICT, subjects.METRIC,
    subjects.WINDOW, subjects.LEASE, subjects.ROLLBACK, subjects.EVENT, subjects.ALERT, subjects.ALERTS, subjects.AUDIT,
    subjects.DLQ, subjects.INTEGRATION, subjects.INTEGRATION_EVENT, subjects.PEER,
}  # fmt: skip
"""Subjects of the services among themselves: no key opens them to a caller."""

CONFIGURED = {role: f"configured-{role}" for role in ROLES}
WITHDRAWN = {role: f"withdrawn-{role}" for role in ROLES}
SECURITY = {
    "rate_limit": {"control_per_minute": 0},
    "failed_keys_per_minute": 0,
    "api_keys": [
        {"name": name, "role": name.removeprefix("old-"), "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in {**CONFIGURED, **{f"old-{role}": key for role, key in WITHDRAWN.items()}}.items()
    ],
}
NONSENSE = {"model": "nobody", "no_such_field": 1}
"""Whoever may do something is told about this, and nothing is done."""


async def credentials(rig: Rig) -> tuple[dict[str, str | None], dict[str, tuple[str, str]]]:
    """`Authorization` headers: those that hold no good key, and good ones with their role, by what they are."""

    async def admin(path: str, **body: Any) -> dict[str, Any]:
        response = await rig.client.post(API + path, json=body, headers={"Authorization": "Bearer configured-admin"})
        assert response.status_code == 200, response.text
        return dict(response.json())

    bad: dict[str, str | None] = {
        "no key": None,
        "an empty key": "Bearer",
        "a wrong key": "Bearer cyp_wrong",
        "a name for a key": "Bearer admin",
        "the hash of a key": f"Bearer {hashlib.sha256(b'configured-admin').hexdigest()}",
        "a key cut short": "Bearer configured-admi",
        "another scheme": "Basic configured-admin",
        "two keys": "Bearer wrong, Bearer configured-admin",
    }
    good: dict[str, tuple[str, str]] = {}
    for role in ROLES:
        good[f"configured {role}"] = (role, f"Bearer {CONFIGURED[role]}")
        await admin(f"/keys/old-{role}/revoke")
        bad[f"revoked configured {role}"] = f"Bearer {WITHDRAWN[role]}"
        made = await admin("/keys", name=f"made-{role}", role=role)
        good[f"made {role}"] = (role, f"Bearer {made['key']}")
        revoked = await admin("/keys", name=f"revoked-{role}", role=role)
        await admin(f"/keys/revoked-{role}/revoke")
        bad[f"revoked {role}"] = f"Bearer {revoked['key']}"
        rotated = await admin("/keys", name=f"rotated-{role}", role=role)
        await admin(f"/keys/rotated-{role}/rotate", overlap_seconds=0)
        bad[f"rotated {role}"] = f"Bearer {rotated['key']}"
        short = await admin("/keys", name=f"short-{role}", role=role, expires_in_days=0.2 / 86_400)
        bad[f"expired {role}"] = f"Bearer {short['key']}"

    async def over() -> bool:
        shown = (await rig.client.get(f"{API}/keys", headers={"Authorization": good["configured admin"][1]})).json()
        return sum(key["state"] == "expired" for key in shown["keys"]) == len(ROLES)

    await eventually(over)
    for role in ROLES:  # the ring looks at the clock a moment after the list does
        await eventually(lambda header=bad[f"expired {role}"]: _refused(rig, header))
    return bad, good


async def _refused(rig: Rig, header: str | None) -> bool:
    response = await rig.client.get("/v1/models", headers={"Authorization": header or ""})
    return response.status_code == 401


@contextlib.asynccontextmanager
async def a_router(server: NatsServer) -> AsyncIterator[tuple[Rig, dict[str, str | None], dict[str, tuple[str, str]]]]:
    async with running(server, security=SECURITY) as rig:
        del rig.client.headers["Authorization"]
        bad, good = await credentials(rig)
        before = await state(rig)
        yield rig, bad, good
        assert await state(rig) == before, "something was changed by a call that was refused or made no sense"


async def state(rig: Rig) -> dict[str, Any]:
    """What a refused call might have changed."""
    shown = {}
    for path in ("/status", "/keys", "/models", "/history"):
        response = await rig.client.get(API + path, headers={"Authorization": f"Bearer {CONFIGURED['admin']}"})
        shown[path] = response.json()
    control = rig.router.control
    assert control
    return {**shown, "monitoring": control.monitoring}


def expected(rule: Rule, role: str | None) -> set[int] | None:
    """The statuses of a refusal, None where there must be none."""
    if rule.role == OPEN:
        return None
    if role is None:
        return {401}
    return {403} if ROLES.index(role) < ROLES.index(rule.role) else None


def wrong(status: int, refusal: set[int] | None) -> bool:
    """Whether a status is not as the table has it; nothing may ever break inside."""
    return status not in refusal if refusal is not None else status in {401, 403, 405, 429, 500}


async def call(rig: Rig, method: str, path: str, header: str | None, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
    """The status and the beginning of the answer; a stream of events is left after its head."""
    headers = {} if header is None else {"Authorization": header}
    content = {} if body is None else {"json": body}
    async with rig.client.stream(method, path, headers=headers, **content) as response:
        if response.status_code == 200 and "event-stream" in response.headers["content-type"]:
            return response.status_code, b""
        return response.status_code, await response.aread()


async def test_every_endpoint_with_every_key(nats_server: NatsServer) -> None:
    async with a_router(nats_server) as (rig, bad, good):
        holders = {name: (None, header) for name, header in bad.items()} | dict(good)
        differing = []
        for rule in RULES:
            assert rule.endpoint
            method, pattern = rule.endpoint.split()
            path = pattern.format(model="stable", name="stable", test_id="ab_test_none")
            for name, (role, header) in holders.items():
                if rule.role == OPEN and name not in {"no key", "a wrong key", "revoked client"}:
                    continue
                refusal = expected(rule, role)
                # A refused call would change something; one that is let in is about nothing.
                body = None if method == "GET" else NONSENSE if refusal is None else {"name": "stable"}
                also = method == "GET" and not path.endswith("/events") and name in {"no key", *(f"made {one}" for one in ROLES)}
                for spelt in (method, "HEAD") if also else (method,):
                    status, answer = await call(rig, spelt, path, header, body)
                    if wrong(status, refusal):
                        differing.append(f"{spelt} {path} with {name}: {status} {answer[:100]!r}")
                    key = (header or "").removeprefix("Bearer ")
                    assert not key.startswith(("configured-", "withdrawn-", "cyp_")) or key.encode() not in answer, f"{path} repeats a key"
        assert not differing, "\n".join(differing)


async def test_every_endpoint_has_a_rule_and_no_route_is_left_out_of_the_document(rig: Rig) -> None:
    document = (await rig.client.get("/openapi.json")).json()
    documented = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item if method != "parameters"}
    table = [rule.endpoint for rule in RULES]
    assert len(table) == len(set(table))
    assert set(table) == documented
    routes = {f"POST {path}" for path in PATHS} | {f"GET {MODELS_PATH}"} | {f"GET {path}" for path in rig.app._operations}
    assert rig.router.control
    for route in rig.router.control.app.routes:
        if isinstance(route, Mount):
            assert route.path in {"/docs/assets", "/dashboard/static", "/dashboard/charts"}, "files of a page, which need no key"
            continue
        assert isinstance(route, Route)
        path = route.path.replace(":path}", "}").rstrip("/")  # with a slash at its end one only leads to the other
        routes |= {f"{method} {path}" for method in (route.methods or ()) if method != "HEAD"}
    assert routes <= documented
    for operation in (item for path in document["paths"].values() for item in path.values()):
        rule = next(r for r in RULES if r.endpoint and operation is document["paths"][r.endpoint.split()[1]].get(r.endpoint.split()[0].lower()))
        assert operation["security"] == ([] if rule.role == OPEN else [{"key": []}]), rule
        assert rule.role == OPEN or f"Role: `{rule.role}`." in operation["description"], rule


async def test_no_other_spelling_of_a_path_is_a_way_around_its_key(nats_server: NatsServer) -> None:
    async with a_router(nats_server) as (rig, _, _):
        for path in (
            "/v1/ab-testing/%73tatus", "/v1//ab-testing/status", "/v1/ab-testing/status/", "/V1/AB-TESTING/STATUS", "//v1/ab-testing/status",
            "/v1/ab-testing/./status", "/health/../v1/ab-testing/keys", "/docs/../v1/ab-testing/keys", "/docs/assets/../../v1/ab-testing/keys",
            "/v1/ab-testing/keys;.json", "/v1/ab-testing/keys%00", "/v1/ab-testing/models/..%2f..%2fkeys", "/v1/%6dodels", "/health/v1/ab-testing/keys",
        ):  # fmt: skip
            status = await _raw_status(rig, path)
            assert status in {400, 401, 404}, path
        for method, override in (("GET", "POST"), ("POST", "GET"), ("HEAD", "DELETE")):
            response = await rig.client.request(
                method, f"{API}/models/stable", headers={"X-HTTP-Method-Override": override, "X-Original-URL": "/health", "X-Forwarded-For": "127.0.0.1"}
            )
            assert response.status_code in {401, 405}, method


async def _raw_status(rig: Rig, path: str) -> int:
    """As these bytes: clients tidy paths up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(20):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def test_every_subject_with_every_key(nats_server: NatsServer) -> None:
    async with a_router(nats_server) as (_rig, bad, good):
        caller = await nats_server.connect("caller")
        holders = {name: (None, header) for name, header in bad.items()} | dict(good)
        differing = []
        for rule in RULES:
            concrete = [subjects.control(spelt) for token in rule.verbs for spelt in {token, token.replace("-", "_")}]
            concrete += [subjects.request(kind) for kind in rule.requests]
            for subject in concrete:
                for name, (role, header) in holders.items():
                    refusal = expected(rule, role)
                    body = NONSENSE if refusal is None else {"name": "stable"}
                    headers = None if header is None else {"Authorization": header}
                    reply = await caller.request(subject, json.dumps(body).encode(), timeout=20, headers=headers)
                    if wrong(int((reply.headers or {})["Cypria-Status"]), refusal):
                        differing.append(f"{subject} with {name}: {reply.headers} {reply.data[:100]!r}")
        assert not differing, "\n".join(differing)
        await caller.close()


def test_every_verb_and_request_on_the_bus_has_a_rule() -> None:
    assert sorted(token for rule in RULES for token in rule.verbs) == sorted(BY_TOKEN)
    assert sorted(kind for rule in RULES for kind in rule.requests) == sorted(ROUTES)


async def test_no_key_opens_the_subjects_of_the_services_to_a_caller(nats_server: NatsServer) -> None:
    spelt_out = {value for name, value in vars(subjects).items() if name.isupper() and str(value).startswith("cypria.")}
    assert spelt_out | set(subjects.PATTERNS) == CLOSED | WITH_KEYS, "a new subject needs a rule"
    refused: list[str] = []

    async def note(exc: Exception) -> None:
        refused.append(str(exc).lower())

    nc = await nats.connect(
        nats_server.url, user="caller", password=nats_server.embedded.passwords["caller"], inbox_prefix="_INBOX.caller",
        allow_reconnect=False, error_cb=note,
    )  # fmt: skip
    for pattern in sorted(CLOSED | WITH_KEYS):
        subject = pattern.replace("*", "status").replace(">", "status")
        for header in (None, *CONFIGURED.values()):
            headers = None if header is None else {"Authorization": f"Bearer {header}"}
            await nc.publish(subject, b"{}", headers=headers)
        # The server tells of a violation before it answers a PING that came after; the first may have come before.
        await nc.flush(30)
        await nc.flush(30)
        assert any(f'"{subject}"' in text for text in refused) is (pattern in CLOSED), pattern
    await nc.close()


async def test_a_key_counts_as_it_is_now(nats_server: NatsServer) -> None:
    """One key through its life: good, of too small a role, revoked, and its name in other hands."""
    async with running(nats_server, security=SECURITY) as rig:
        admin = {"Authorization": f"Bearer {CONFIGURED['admin']}"}

        async def status(key: str) -> int:
            return (await rig.client.get(f"{API}/keys", headers={"Authorization": f"Bearer {key}"})).status_code

        async def made(role: str) -> httpx.Response:
            return await rig.client.post(f"{API}/keys", json={"name": "one", "role": role}, headers=admin)

        first = (await made("admin")).json()["key"]
        assert await status(first) == 200
        await rig.client.post(f"{API}/keys/one/revoke", json={}, headers=admin)
        assert await status(first) == 401
        second = (await made("viewer")).json()["key"]
        assert [await status(first), await status(second)] == [401, 403]
        await rig.client.post(f"{API}/keys/one/revoke", json={}, headers=admin)
