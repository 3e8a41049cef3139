"""What an operator holds in hand on a running system: control API, command line, figures, record."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.e2e import rehearsing, watching
from tests.e2e.product import KEYS, ROLES, SLASHED, UNICODE, Product, cypria, refused, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import contents, eventually
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    sources = {"allow": [str(ROOT / "infra" / "models"), *(f"http://127.0.0.1:{port}/" for port in rehearsing.PORTS)]}
    async with running_product(tmp_path_factory.mktemp("operator"), model_sources=sources) as product:

        async def recording() -> bool:
            front = (product.system.data_dir / "clickhouse-http.json").exists()  # the edge serves before it does
            return front and (await product.call("GET", "history")).status_code == 200

        await eventually(recording, 60, 0.2)
        yield product


async def clickhouse(product: Product, query: str) -> list[dict[str, Any]]:
    told = json.loads((product.system.data_dir / "clickhouse-http.json").read_text())
    async with httpx.AsyncClient(auth=(told["user"], told["password"])) as client:
        reply = await client.post(told["url"], content=f"{query} FORMAT JSONEachRow", params={"database": "cypria"})
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


async def test_each_endpoint_wants_its_role_and_nothing_runs_at_first(product: Product) -> None:
    needs = {
        "viewer": ["GET status", "GET history", "GET monitoring/status", "GET monitoring/alerts", "GET models", "GET tests/x"],
        "operator": ["POST start", "POST stop", "POST rollback", "PATCH traffic-split", "POST pause", "POST resume",
                     "POST approve", "POST monitoring/stop", "POST monitoring/start"],
        "admin": ["GET config", "GET audit", "POST models/stable/load", "POST models/stable/unload"],
    }  # fmt: skip
    for needed, endpoints in needs.items():
        for endpoint in endpoints:
            method, path = endpoint.split()
            refused(await product.call(method, path, None), 401)
            below = ROLES[ROLES.index(needed) - 1]
            assert refused(await product.call(method, path, below), 403)["code"] == "insufficient_role", endpoint
            if endpoint != "POST models/stable/unload":
                assert (await product.call(method, path, needed)).status_code not in {401, 403}, endpoint
    for path in ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/asyncapi.yaml"):
        assert (await product.call("GET", path, None)).status_code == 200, path
    refused(await product.call("GET", f"/v1/models?api_key={KEYS['admin']}", None), 401)
    status = (await product.call("GET", "status", "viewer")).json()
    assert {"test_id", "status", "elapsed_minutes", "traffic_split_percent", "metrics", "models"} <= set(status)
    assert set(status.values()) == {None}
    for method, path, body in (("POST", "stop", None), ("POST", "rollback", None), ("POST", "pause", {}),
                               ("PATCH", "traffic-split", {"traffic_split_percent": 5})):  # fmt: skip
        assert refused(await product.call(method, path, json=body), 404)["code"] == "nothing_running"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model_b": "stable"}, 400, "model_b"),
        ({"model_a": "nobody"}, 404, "model_a"),
        ({"model_b": "nobody"}, 404, "model_b"),
        ({"traffic_split_percent": -0.01}, 422, "traffic_split_percent"),
        ({"traffic_split_percent": 100.01}, 422, "traffic_split_percent"),
        ({"traffic_split_percent": 0.005}, 422, "traffic_split_percent"),
        ({"traffic_split_percent": 10**40}, 422, "traffic_split_percent"),
        ({"traffic_split_percent": True}, 422, "traffic_split_percent"),
        ({"test_duration_minutes": 0}, 422, "test_duration_minutes"),
        ({"test_duration_minutes": 1441}, 422, "test_duration_minutes"),
        ({"auto_rollback": "yes"}, 422, "auto_rollback"),
        ({"success_criteria": {"min_sample": 5}}, 422, "success_criteria.min_sample"),
        ({"failure_criteria": {"max_latency_ms": 1e300}}, 422, "failure_criteria.max_latency_ms"),
        ({"tags": {"a": "x" * 5000}}, 422, "tags.a"),
        ({"variants": []}, 422, "variants"),
        ({"shadow": {}}, 422, "shadow"),
        ({"baseline_percent": 5}, 422, "baseline_percent"),
        ({"trafic_split_percent": 5}, 422, "trafic_split_percent"),
    ],
)
async def test_start_refuses_naming_the_field(product: Product, fields: Any, status: int, param: str) -> None:
    response = await product.call("POST", "start", json={"model_a": "stable", "model_b": "canary", **fields})
    assert refused(response, status)["param"] == param


async def test_what_is_no_json_object_is_refused_and_so_is_another_method(product: Product) -> None:
    for content in (
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b'{"model_a": NaN}',
        b'{"x": Infinity}',
        b"[" * 50_000,
        b'{"a":' * 2000,
    ):
        assert refused(await product.call("POST", "start", content=content), 400)["code"] == "invalid_json"
    for method, path, allowed in (
        ("GET", "start", "POST"),
        ("POST", "traffic-split", "PATCH"),
        ("PUT", "status", "GET, HEAD"),
    ):
        response = await product.call(method, path)
        refused(response, 405)
        assert response.headers["allow"] == allowed
    for path in ("nothing", "status/", "tests/a/b"):
        refused(await product.call("GET", path), 404)
    for query in (
        "history?limit=0",
        "history?limit=x",
        "history?offset=-1",
        "monitoring/alerts?limit=nan",
        "status?tset_id=x",
    ):
        refused(await product.call("GET", query), 422)
    for interval in ("0", "nan", "inf", "1e99", "x"):
        refused(await product.call("POST", f"monitoring/start?check_interval_seconds={interval}"), 422)


async def test_a_test_in_the_specs_shapes_from_start_to_history(product: Product) -> None:
    started = await product.system.api("POST", "start", {"model_a": "stable", "model_b": "canary"})
    assert set(started) == {"test_id", "status"}
    test_id = started["test_id"]
    assert started["status"] == "started"
    again = await product.call("POST", "start", json={"model_a": "stable", "model_b": "c2"})
    assert test_id in refused(again, 409)["message"]
    status = (await product.call("GET", "status", "viewer")).json()
    assert (status["test_id"], status["status"], status["traffic_split_percent"]) == (test_id, "running", 10.0)
    assert status["models"] == {"variant_a": "stable", "variant_b": "canary"}
    arms = await product.figures(test_id)
    assert set(arms) == {"variant_a", "variant_b"}
    for figures in arms.values():
        assert {"request_count", "error_rate", "avg_latency_ms", "successful_requests"} <= set(figures)
    for percent in (0, 0.01, 100, 33.33):
        changed = await product.system.api("PATCH", "traffic-split", {"traffic_split_percent": percent})
        assert changed == {"status": "updated", "traffic_split_percent": percent, "test_id": test_id}
        assert (await product.system.status(test_id))["traffic_split_percent"] == percent
    assert await product.system.api("POST", "pause") == {"status": "paused", "test_id": test_id}
    assert (await product.system.status(test_id))["status"] == "paused"
    assert await product.system.api("POST", "resume") == {"status": "running", "test_id": test_id}
    refused(await product.call("POST", "approve"), 409)
    result = await product.system.api("POST", "stop")
    assert {"test_id", "status", "decision", "reason", "metrics_summary", "start_time", "end_time"} <= set(result)
    assert (result["status"], result["decision"]) == ("completed", "inconclusive")
    assert set(result["metrics_summary"]) == {"variant_a", "variant_b"}
    history = (await product.call("GET", "history?limit=1", "viewer")).json()
    assert set(history) == {"tests", "total_tests"}
    assert history["tests"][0]["test_id"] == test_id
    for path in ("stop", "rollback", "pause"):
        refused(await product.call("POST", path, json={"test_id": test_id}), 404)
    alerts = (await product.call("GET", "monitoring/alerts", "viewer")).json()["alerts"]
    incidents = [alert["incident"] for alert in alerts if alert["test_id"] == test_id]
    assert len(incidents) == len(set(incidents))

    async def audited() -> bool:
        records = (await product.call("GET", "audit?limit=1000")).json()["records"]
        return {"start", "traffic-split", "pause", "resume", "stop"} <= {
            r["action"] for r in records if r["test_id"] == test_id
        }

    await eventually(audited, 60, 0.2)


async def test_several_tests_at_once_any_names_and_the_latest_is_meant(product: Product) -> None:
    async with product.test() as first, product.test(SLASHED, UNICODE, traffic_split_percent=100) as second:
        status = (await product.call("GET", "status", "viewer")).json()
        assert status["test_id"] == second
        assert set(status["running_tests"]) == {first, second}
        assert (await product.system.api("PATCH", "traffic-split", {"traffic_split_percent": 99}))["test_id"] == second
        response = await product.chat(SLASHED, user="u1")
        assert (response.status_code, response.headers["x-ab-test-id"]) == (200, second)
        assert json.loads(product.canary.seen.raw[-1])["model"] == "upstream/name"
        assert (await product.call("GET", f"/v1/models/{SLASHED}", "client")).json()["id"] == SLASHED
        rolled = await product.system.api("POST", "rollback", {"test_id": second, "reason": "because"})
        assert rolled == {"status": "rolled_back", "test_id": second}
        assert (await product.system.api("GET", "history"))["tests"][0]["decision"] == "rollback"
        assert "x-ab-test-id" not in (await product.chat(SLASHED)).headers
        assert (await product.system.status(first))["status"] == "running"
        gradual = await product.system.api("POST", "rollback", {"test_id": first, "speed": "gradual"})
        assert gradual == {"status": "rolling_back", "test_id": first}
        refused(await product.call("PATCH", "traffic-split", json={"traffic_split_percent": 90, "test_id": first}), 409)


async def test_after_a_stop_with_requests_in_flight_every_record_agrees_with_the_clients(product: Product) -> None:
    gate = asyncio.Event()
    slow = Behaviour(gate=gate)
    async with product.test(traffic_split_percent=50) as test_id:
        with product.behaving(slow, slow):
            asked = [asyncio.create_task(product.chat(user=f"u{n}")) for n in range(40)]
            await eventually(lambda: min(product.stable.seen.running, product.canary.seen.running) >= 3)
            result = await product.system.api("POST", "stop", {"test_id": test_id})
            gate.set()
            responses = await asyncio.gather(*asked)
    assert all(figures["in_flight"] for figures in result["metrics_summary"].values())
    # Those that came after the stop were nobody's.
    named = [response.headers.get("x-ab-test-variant") for response in responses]
    seen = Counter(f"variant_{variant}" for variant in named if variant)

    async def recorded() -> bool:
        (listed,) = (await product.system.api("GET", "history?limit=1"))["tests"]
        shown = [
            listed["metrics_summary"],
            (await product.system.api("GET", f"tests/{test_id}"))["metrics_summary"],
            await product.figures(test_id),
        ]
        return all(
            {name: (f["request_count"], f["in_flight"]) for name, f in figures.items()}
            == {name: (count, 0) for name, count in seen.items()}
            for figures in shown
        )

    await eventually(recorded, 60, 0.2)
    rows = await clickhouse(
        product, f"SELECT variant, sum(requests) AS n FROM variant_metrics_1m WHERE test_id = '{test_id}' GROUP BY variant"
    )
    assert {f"variant_{row['variant']}": int(row["n"]) for row in rows} == seen


async def test_clickhouse_tells_the_same_test_as_the_api(product: Product) -> None:
    async with product.test(traffic_split_percent=33.33) as test_id:
        await product.system.api("POST", "rollback", {"test_id": test_id, "reason": "by hand"})
    (listed,) = (await product.system.api("GET", "history?limit=1"))["tests"]

    async def archived() -> list[dict[str, Any]]:
        return await clickhouse(product, f"SELECT * FROM tests WHERE test_id = '{test_id}' AND status = 'rolled_back'")

    (row,) = await eventually(archived, 60, 0.2)
    for name in ("test_id", "status", "decision", "reason", "traffic_split_percent"):
        assert row[name] == listed[name], name

    async def audited() -> bool:
        acts = await clickhouse(product, f"SELECT action FROM audit_log WHERE test_id = '{test_id}' AND status = 200")
        return {"start", "rollback"} <= {row["action"] for row in acts}

    await eventually(audited, 60, 0.2)


async def test_the_record_of_who_did_what_tells_what_was_changed_and_is_whole(product: Product) -> None:
    async with product.test(traffic_split_percent=10) as test_id:
        await product.system.api("PATCH", "traffic-split", {"traffic_split_percent": 33.33})
        assert refused(await product.call("POST", "models/stable/unload", "operator"), 403)["code"] == "insufficient_role"

    async def recorded() -> list[dict[str, Any]]:
        records = (await product.call("GET", "audit?limit=1000")).json()["records"]
        mine = [r for r in records if r["test_id"] == test_id and r["action"] == "traffic-split"]
        return mine if any(r["action"] == "models-unload" and r["needs"] == "admin" for r in records) else []

    (split,) = await eventually(recorded, 60, 0.2)
    assert (split["before"]["traffic_split_percent"], split["after"]["traffic_split_percent"]) == (10, 33.33)
    status, shown, error = await cypria(product, "audit", "--since", "10m", "--actor", split["actor"], "--limit", "1000")
    assert (status, error) == (0, "")
    assert "traffic_split_percent 10 -> 33.33" in shown
    status, shown, error = await cypria(product, "audit", "verify")
    assert (status, error) == (0, ""), shown
    head = shown.splitlines()[-1].removeprefix("head ")
    number, _, hashed = head.partition(":")
    assert f"whole: {int(number):,} records, {int(number):,} of them" in shown
    assert len(hashed) == 64
    status, shown, _ = await cypria(product, "audit", "verify", "--head", f"{number}:{'0' * 64}", "--json")
    assert (status, json.loads(shown)["problem"]["kind"]) == (1, "pinned")
    assert (await product.call("GET", "audit/verify", params={"head": head})).json()["ok"]
    assert "SEQUENCE:HASH" in refused(await product.call("GET", "audit/verify?head=7"), 422)["message"]
    refused(await product.call("GET", "audit/verify", "operator"), 403)

    async def alerted() -> bool:
        alerts = (await product.call("GET", "monitoring/alerts?limit=1000", "viewer")).json()["alerts"]
        return any(alert["incident"] == "security.admin_changes.operator" for alert in alerts)

    await eventually(alerted, 60, 0.2)


async def test_doctor_looks_at_everything_and_says_what_is_wrong(product: Product) -> None:
    folder = str(product.system.data_dir)
    status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, "--json")
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    sound = ("edge", "ready", "key", "models", "registry", "monitor", "running test", "configuration", "history", "memory", "disk")
    assert (status, {checks[name]["state"] for name in (*sound, "process alerts")}) == (0, {"ok"}), shown
    assert {"alerts", "cpu", "log"} <= set(checks)
    async with product.test(traffic_split_percent=30) as test_id:
        await product.chat()
        status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, "--json", CYPRIA_API_KEY=KEYS["viewer"])
        checks = {check["name"]: check for check in json.loads(shown)["checks"]}
        assert (status, checks["configuration"]["state"]) == (0, "skipped"), shown
        assert f"{test_id} (running, canary against stable)" in checks["running test"]["detail"]
        assert "a start on stable answers 409" in checks["running test"]["remedy"]
        assert (checks["split"]["state"], checks["split"]["detail"]) == ("ok", f"{test_id}: 30 %")
    status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, "--json")
    history = next(check for check in json.loads(shown)["checks"] if check["name"] == "history")
    assert test_id in history["detail"]
    await product.system.api("POST", "monitoring/stop")
    try:
        status, shown, _ = await cypria(product, "doctor", "--data-dir", folder)
        assert status == 0
        assert "stopped, verdicts only alert" in shown
    finally:
        await product.system.api("POST", "monitoring/start")
    status, shown, _ = await cypria(product, "doctor", CYPRIA_API_KEY="wrong", CYPRIA_DATA_DIR=folder)
    assert (status, "revoked API key" in shown) == (1, True)
    status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, CYPRIA_URL="http://127.0.0.1:9")
    assert (status, "no answer from http://127.0.0.1:9" in shown) == (1, True)


async def test_keys_are_made_rotated_and_revoked_from_the_shell(product: Product) -> None:
    status, key, said = await cypria(product, "keys", "create", "ci", "--role", "operator", "--expires-in-days", "30")
    assert (status, key[:4], key.count("\n"), "key ci of role operator expires 2" in said) == (0, "cyp_", 1, True), said
    status, shown, _ = await cypria(product, "keys", "rotate", "ci", "--overlap-seconds", "600", "--json")
    turned = json.loads(shown)["key"]
    for good in (key.strip(), turned):
        assert (await cypria(product, "status", CYPRIA_API_KEY=good))[0] == 0
        status, shown, said = await cypria(product, "keys", "list", CYPRIA_API_KEY=good)
        assert (status, shown, "this needs admin" in said) == (1, "", True)
    status, shown, _ = await cypria(product, "keys", "list")
    assert (status, {"ci", "operator", "api", "config"} <= set(shown.split())) == (0, True)
    assert key.strip() not in shown
    status, shown, _ = await cypria(product, "keys", "revoke", "ci")
    assert (status, "key ci is revoked since 2" in shown) == (0, True)
    for ended in (key.strip(), turned):
        assert (await cypria(product, "status", CYPRIA_API_KEY=ended))[0] == 1
    status, shown, said = await cypria(product, "keys", "revoke", "admin")
    assert (status, shown, "last admin's key" in said) == (1, "", True)
    status, _, said = await cypria(product, "keys", "rotate", "nobody")
    assert (status, "no key 'nobody'" in said) == (1, True)
    # Neither key is anywhere in what the system has written down.
    for file, content in contents(product.system.data_dir):
        assert key.strip().encode() not in content, file
        assert turned.encode() not in content, file


async def test_the_command_line_says_what_it_cannot_do(product: Product, tmp_path: Any) -> None:
    status, _, said = await cypria(product, "plan", "--any", "thing")
    assert (status, "`cypria plan` comes in a later version" in said) == (2, True)
    for variables, expected, words in (
        ({"CYPRIA_URL": "127.0.0.1:2242"}, 2, "CYPRIA_URL is '127.0.0.1:2242': give an address such as"),
        ({"CYPRIA_URL": product.stable.base_url}, 1, "not as Cypria does: check CYPRIA_URL"),
        ({"CYPRIA_API_KEY": "one\ntwo"}, 2, "CYPRIA_API_KEY holds more than one line"),
        ({"CYPRIA_API_KEY": "", "CYPRIA_DATA_DIR": str(tmp_path)}, 1, "no API key"),
    ):
        status, shown, said = await cypria(product, "status", **variables)
        assert (status, shown, words in said, "Traceback" in said) == (expected, "", True, False), said
    status, _, said = await cypria(product, "load", "stable", "--rate", "0")
    assert (status, "--rate" in said) == (2, True)
    status, shown, _ = await cypria(product, "load", "nobody", "--rate", "20", "--seconds", "0.2")
    assert (status, "the model 'nobody' does not exist" in shown) == (1, True)
    status, shown, _ = await cypria(product, "load", "stable", "--rate", "20", "--seconds", "0.23", "--json")
    assert (status, json.loads(shown)["by_status"]) == (0, {"200": 5})
    async with product.test():
        pass
    (listed,) = (await product.system.api("GET", "history?limit=1"))["tests"]
    status, shown, _ = await cypria(product, "history", "--limit", "1")
    assert status == 0
    assert "\x1b" not in shown
    assert {listed["test_id"], listed["end_time"]} <= set(shown.split())  # whole, where a program reads


async def test_no_change_is_recorded_without_what_it_left(product: Product) -> None:
    changes = "SELECT action FROM audit_log WHERE changes AND status = 200"
    async with product.test():

        async def caught_up() -> bool:
            return {"action": "start"} in await clickhouse(product, changes)

        await eventually(caught_up, 60, 0.2)
        assert await clickhouse(product, f"{changes} AND after = ''") == []


async def test_watch_is_a_screen_on_a_terminal_and_lines_in_a_pipe(product: Product) -> None:
    await watching.on_a_screen(product)
    await watching.of_several_tests(product)
    await watching.in_a_pipe(product)


async def test_a_rehearsal_shows_a_rollback_and_takes_everything_away_again(product: Product) -> None:
    await rehearsing.a_bad_canary(product)
    await rehearsing.what_a_signal_ends(product)
    await rehearsing.what_cannot_be_rehearsed(product)
