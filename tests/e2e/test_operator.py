"""What an operator holds in hand on a running system: the command line, figures for Prometheus, ClickHouse, the record."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.e2e.product import KEYS, Product, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import environment, eventually
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("operator")) as product:

        async def recording() -> bool:
            # The edge serves before ClickHouse does.
            return (await product.call("GET", "history")).status_code == 200

        await eventually(recording, 60, 0.2)
        yield product


async def run(*command: str, **variables: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
        env=environment(PYTHONPATH=str(ROOT), **variables),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


async def cypria(product: Product, *arguments: str, **variables: str) -> tuple[int, str, str]:
    known = {"CYPRIA_URL": product.system.url, "CYPRIA_API_KEY": KEYS["admin"], **variables}
    return await run(sys.executable, "-m", "services.cli", *arguments, **known)


async def clickhouse(product: Product, query: str) -> list[dict[str, Any]]:
    told = json.loads((product.system.data_dir / "clickhouse-http.json").read_text())
    async with httpx.AsyncClient(auth=(told["user"], told["password"])) as client:
        reply = await client.post(told["url"], content=f"{query} FORMAT JSONEachRow", params={"database": "cypria"})
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


async def test_after_a_stop_with_requests_in_flight_every_record_agrees_with_the_clients(product: Product) -> None:
    slow = Behaviour(latency_s=1.5)
    async with product.test(traffic_split_percent=50) as test_id:
        with product.behaving(slow, slow):
            asked = [asyncio.create_task(product.chat(user=f"u{n}")) for n in range(40)]
            await eventually(lambda: min(product.stable.seen.running, product.canary.seen.running) >= 3)
            result = await product.system.api("POST", "stop", {"test_id": test_id})
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

    await eventually(recorded, 15, 0.2)
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

    (row,) = await eventually(archived, 15, 0.2)
    for name in ("test_id", "status", "decision", "reason", "traffic_split_percent"):
        assert row[name] == listed[name], name
    acts = await clickhouse(product, f"SELECT action FROM audit_log WHERE test_id = '{test_id}' AND status = 200")
    assert {"start", "rollback"} <= {row["action"] for row in acts}


async def test_promtool_finds_nothing_to_say_about_any_services_metrics(product: Product) -> None:
    async with product.test(traffic_split_percent=50):
        for stream in (False, True):
            await product.chat(stream=stream)
    told = [json.loads(file.read_text()) for file in (product.system.data_dir / "run").glob("*.json")]
    assert {one["service"] for one in told} == {"router", "inference", "metrics", "monitor", "alerts"}
    async with httpx.AsyncClient() as client:
        for one in told:
            metrics = await client.get(f"http://127.0.0.1:{one['port']}/metrics")
            done = await asyncio.to_thread(
                subprocess.run, ["promtool", "check", "metrics"], input=metrics.content, capture_output=True, check=False
            )
            assert (done.returncode, done.stdout + done.stderr) == (0, b""), one["service"]
            assert (await client.put(f"http://127.0.0.1:{one['port']}/health")).status_code == 405


async def test_doctor_looks_at_everything_and_says_what_is_wrong(product: Product) -> None:
    folder = str(product.system.data_dir)
    status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, "--json")
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert (status, {check["state"] for check in checks.values()}) == (0, {"ok"}), shown
    assert {"edge", "ready", "key", "models", "monitor", "running test", "disk", "process alerts"} <= set(checks)
    await product.system.api("POST", "monitoring/stop")
    try:
        status, shown, _ = await cypria(product, "doctor", "--data-dir", folder)
        assert status == 0
        assert "stopped, verdicts only alert" in shown
    finally:
        await product.system.api("POST", "monitoring/start")
    status, shown, _ = await cypria(product, "doctor", CYPRIA_API_KEY="wrong", CYPRIA_DATA_DIR=folder)
    assert (status, "unknown API key" in shown) == (1, True)
    status, shown, _ = await cypria(product, "doctor", "--data-dir", folder, CYPRIA_URL="http://127.0.0.1:9")
    assert (status, "no answer from http://127.0.0.1:9" in shown) == (1, True)


async def test_the_command_line_says_what_it_cannot_do(product: Product, tmp_path: Any) -> None:
    for name in ("plan", "watch", "keys"):
        status, _, said = await cypria(product, name, "--any", "thing")
        assert (status, f"`cypria {name}` comes in a later version" in said) == (2, True)
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
