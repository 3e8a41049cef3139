"""Units exported and erased; and nothing that a caller says is left anywhere, in no file, table or page."""

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from schemas import streams
from tests.e2e.marks import MARKS, files, forms, held
from tests.e2e.product import KEYS, Keyed, Product, bus_caller, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import environment, eventually
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = f"{MARKS['prompt']} wort"
LOUD = {"debug": True, "verbose_metrics": True}
ECHO = Behaviour(echo=True)
BROKEN = (
    Behaviour(echo=True, status=500), Behaviour(echo=True, status=400), Behaviour(echo=True, status=429, retry_after="1"),
    Behaviour(echo=True, error_after=1), Behaviour(echo=True, die_after=1), Behaviour(echo=True, hang_after=1),
    Behaviour(hang=True), Behaviour(text=f"{{{PROMPT}"), Behaviour(tool_call=(MARKS["tool"], f"{{{PROMPT}")),
    Behaviour(raw=f"HTTP/1.1 200 {PROMPT}\r\nContent-Length: x{PROMPT}\r\n\r\n{PROMPT}".encode()),
    Behaviour(raw=f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{PROMPT}".encode()),
    Behaviour(raw=f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/{PROMPT}\r\nContent-Length: 0\r\n\r\n".encode()),
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("marked"), logging=LOUD) as product:
        yield product


def body(**fields: Any) -> dict[str, Any]:
    said = [{"role": "system", "content": MARKS["system prompt"]}, {"role": "user", "content": PROMPT}]
    return {"model": "stable", "messages": said, "max_tokens": 4, "user": MARKS["user"],
            "prompt_cache_key": MARKS["cache key"], **fields}  # fmt: skip


def headers(role: str = "client") -> dict[str, str]:
    return {
        "Authorization": f"Bearer {KEYS[role]}", "X-Session-ID": MARKS["session"], "X-User-ID": MARKS["user id"],
        "X-Forwarded-For": f"{MARKS['forwarded address']}, {MARKS['forwarded address, version 6']}",
        "Forwarded": f"for={MARKS['forwarded address']}", "X-Real-IP": MARKS["forwarded address"],
        "Cookie": f"sid={MARKS['cookie']}", "User-Agent": MARKS["user agent"], "Referer": f"http://x/{MARKS['cookie']}",
    }  # fmt: skip


@contextlib.asynccontextmanager
async def somebody(system: Keyed) -> AsyncIterator[httpx.AsyncClient]:
    """A client at an address that nobody else has."""
    transport = httpx.AsyncHTTPTransport(local_address=MARKS["address"])
    async with httpx.AsyncClient(transport=transport, base_url=system.url, timeout=20) as client:
        yield client


async def test_the_search_finds_a_text_in_every_form_and_at_every_place() -> None:
    for name, mark in MARKS.items():
        raw = mark.encode()
        for before in range(4):
            text = b"y" * before + raw + b"zz"
            shown = (text, text.hex().encode(), base64.b64encode(text), base64.urlsafe_b64encode(text),
                     json.dumps({"x": text.decode()}).encode(), f"?q={httpx.QueryParams({'q': mark})}".encode())  # fmt: skip
            for one in shown:
                assert any(found.startswith(f"{name} (") for found in held([("here", one)])), (name, one)
        assert held([("here", b"\0" * 100 + base64.b64encode(b"nothing of the kind"))]) == []
        assert all(len(form) >= 8 for form in forms(mark)), name


async def _requests(product: Product, client: httpx.AsyncClient) -> None:
    """Every kind of answer to every kind of request."""
    for fields in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, {"n": 2}):
        assert (await client.post("/v1/chat/completions", json=body(**fields), headers=headers())).status_code == 200
    plain = {"model": "stable", "prompt": PROMPT, "user": MARKS["user"], "max_tokens": 4}
    assert (await client.post("/v1/completions", json=plain, headers=headers())).status_code == 200
    assert (await client.post("/generate", json=plain, headers=headers())).status_code == 200
    embed = {"model": "stable", "input": [PROMPT, PROMPT], "user": MARKS["user"]}
    assert (await client.post("/v1/embeddings", json=embed, headers=headers())).status_code == 200
    for broken in BROKEN:
        with product.behaving(broken, broken):
            for stream in (False, True):
                with contextlib.suppress(httpx.TransportError):
                    await client.post("/v1/chat/completions", json=body(stream=stream), headers=headers())


async def _hang_ups(product: Product, client: httpx.AsyncClient) -> None:
    with product.behaving(Behaviour(echo=True, chunk_delay_s=0.2), Behaviour(echo=True, chunk_delay_s=0.2)):
        cancelled = product.stable.seen.cancelled + product.canary.seen.cancelled
        asked = client.stream("POST", "/v1/chat/completions", json=body(stream=True), headers=headers())
        async with asked as response:
            async for _ in response.aiter_raw():
                break
        await eventually(lambda: product.stable.seen.cancelled + product.canary.seen.cancelled > cancelled)


async def _nonsense(client: httpx.AsyncClient) -> None:
    """What is refused, on the way in, by the edge and by the control API."""
    chat, start = "/v1/chat/completions", "/v1/ab-testing/start"
    wrong = {**headers(), "Authorization": f"Bearer {MARKS['wrong key']}"}
    for path in (chat, start, "/v1/models"):
        assert (await client.post(path, json=body(), headers=wrong)).status_code in {401, 404, 405}
        asked = await client.post(path, params={"key": MARKS["key in a URL"]}, json=body(), headers={})
        assert asked.status_code in {401, 404, 405}
    for text in (MARKS["body that is no JSON"], f'{{"{MARKS["body that is no JSON"]}', f'["{MARKS["body that is no JSON"]}"]'):
        for path in (chat, start, "/v1/ab-testing/feedback"):
            assert (await client.post(path, content=text.encode(), headers=headers("admin"))).status_code == 400
    huge = json.dumps(body(padding="x" * (11 << 20))).encode()
    for path in (chat, start):
        assert (await client.post(path, content=huge, headers=headers("admin"))).status_code == 413
    unknown = body(model=MARKS["model that nobody serves"])
    assert (await client.post(chat, json=unknown, headers=headers())).status_code == 404
    assert (await client.get(f"/v1/models/{MARKS['model that nobody serves']}", headers=headers())).status_code == 404
    for bad in ({"model_a": ["stable", MARKS["bad parameter"]]}, {"model_a": "stable", "model_b": "canary", MARKS["bad parameter"]: 1},
                {"model_a": "stable", "model_b": "canary", "duration_minutes": MARKS["bad parameter"]}):  # fmt: skip
        assert (await client.post(start, json=bad, headers=headers("admin"))).status_code == 422
    named = {"model_a": MARKS["model that nobody serves"], "model_b": "canary"}
    assert (await client.post(start, json=named, headers=headers("admin"))).status_code == 404
    forged = {"token": base64.urlsafe_b64encode(MARKS["forged token"].encode()).decode() + ".x", "thumbs": "up"}
    assert (await client.post("/v1/ab-testing/feedback", json=forged, headers=headers())).status_code == 400
    for path in (f"/{MARKS['unknown path']}", f"/v1/ab-testing/{MARKS['unknown path']}", f"/v1/ab-testing/history?limit={MARKS['bad parameter']}"):
        assert (await client.get(path, headers=headers("admin"))).status_code in {404, 422}


async def _over_the_bus(product: Product) -> None:
    unit = {"X-Session-ID": MARKS["session"], "X-User-ID": MARKS["user id"]}
    async with bus_caller(product.system) as caller:
        for stream in (False, True):
            answer = await caller.ask("cypria.request.chat", body(stream=stream), **unit)
            assert answer[-1].headers["Cypria-Status"] == "200"
        for broken in BROKEN[:5]:
            with product.behaving(broken, broken):
                await caller.ask("cypria.request.chat", body(stream=True), **unit)
        bad = MARKS["body that is no JSON"].encode()
        assert await caller.status("cypria.request.chat", bad) == "400"
        assert await caller.status("cypria.control.start", bad, "admin") == "400"
        assert await caller.status(f"cypria.control.{MARKS['unknown verb']}", {}, "admin") == "404"
        assert await caller.status("cypria.control.start", {"model_a": [MARKS["bad parameter"]]}, "admin") == "422"
        refused = await caller.ask("cypria.request.chat", body(), None, Authorization=f"Bearer {MARKS['wrong key']}")
        assert refused[-1].headers["Cypria-Status"] == "401"
        # Answers that nobody waits for, and questions that may not be answered where they say.
        await caller.nc.publish("cypria.request.chat", json.dumps(body(stream=True)).encode(), reply=caller.nc.new_inbox(),
                                headers={"Authorization": f"Bearer {KEYS['client']}", **unit})  # fmt: skip
        await caller.nc.publish("cypria.request.chat", json.dumps(body()).encode(), reply=f"x.{MARKS['unknown verb']}")
        await caller.nc.flush()


async def _tables(system: Keyed) -> list[tuple[str, bytes]]:
    """Every row of every table and view, which the files hold compressed."""
    front = json.loads((system.data_dir / "clickhouse-http.json").read_text())
    found = []
    async with httpx.AsyncClient(auth=(front["user"], front["password"]), base_url=front["url"]) as client:

        async def ask(statement: str) -> str:
            response = await client.post("/", content=statement)
            assert response.status_code == 200, response.text
            return response.text

        hours = "(since=now()-3600, until=now()+3600, step=60)"
        name = f"name || if(create_table_query LIKE '%{{since:DateTime}}%', '{hours}', '')"
        for table in (await ask(f"SELECT {name} FROM system.tables WHERE database = 'cypria' FORMAT TSV")).splitlines():
            text = await ask(f"SELECT * FROM cypria.{table} LIMIT 20000 FORMAT JSONEachRow")
            found.append((f"table {table}", text.encode()))
    return found


async def _checkpoints(system: Keyed) -> list[tuple[str, bytes]]:
    """What the monitor keeps compressed, read as the monitor may."""
    import nats

    folder = system.data_dir / "nats"
    password = json.loads((folder / "passwords.json").read_text())["monitor"]
    port = next(line.split()[1] for line in (folder / "nats.conf").read_text().splitlines() if line.startswith("port:"))
    nc = await nats.connect(f"nats://127.0.0.1:{port}", user="monitor", password=password, inbox_prefix="_INBOX.monitor")
    try:
        js = nc.jetstream()
        info = await js.stream_info(f"KV_{streams.MONITOR.name}", subjects_filter="$KV.monitor.state.>")
        found = []
        for subject in info.state.subjects or {}:
            message = await js.get_msg(f"KV_{streams.MONITOR.name}", subject=subject, direct=False)
            found.append((subject, zlib.decompress(message.data or b"")))
        return found
    finally:
        await nc.close()


def cypria(system: Keyed, *words: str, stdin: str = "", role: str = "admin") -> subprocess.CompletedProcess[str]:
    env = environment(CYPRIA_URL=system.url, CYPRIA_API_KEY=KEYS[role], PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "services.cli", "units", *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, cwd=ROOT, timeout=200, check=False)


async def told(system: Keyed, verb: str, unit: str, test_id: str) -> dict[str, Any]:
    """What the command says of a unit of a test."""
    done = await asyncio.to_thread(cypria, system, verb, "--json", stdin=f"{unit}\n")
    assert done.returncode == 0, done.stderr
    return next(test for test in json.loads(done.stdout)["tests"] if test["test_id"] == test_id)


@pytest.mark.timeout(420)  # a shell starts some fifteen times
async def test_a_unit_is_exported_and_erased_by_its_value_alone(product: Product, tmp_path: Path) -> None:
    system, unit = product.system, MARKS["user"]
    async with product.test(traffic_split_percent=50) as test_id:
        arm = await product.variant(user=unit)
        for _ in range(4):
            assert await product.variant(user=unit) == arm
        for number in range(20):
            await product.variant(user=f"somebody-{number}")
        tokens = (await product.chat(user=unit)).headers["x-ab-feedback-token"]
        said = {"token": tokens, "thumbs": "up"}
        assert (await product.call("POST", "feedback", "client", json=said)).status_code == 200

        async def whole() -> dict[str, Any]:
            found = await told(system, "export", unit, test_id)
            finals = [fact for fact in found["facts"] if fact["kind"] == "final"]
            return found if len(finals) == 6 and "feedback_units" in found["held"] else {}

        held = await eventually(whole, 60, 0.2)
        assert (held["variant"], held["erased_at"]) == (arm, None)
        assert {"seen", "seen_test", "feedback_units"} <= set(held["held"])
        assert {fact["kind"] for fact in held["facts"]} == {"admitted", "final", "feedback"}
        assert {fact["variant"] for fact in held["facts"]} == {arm}
        assert held["first_seen"] <= held["last_seen"]
        assert await told(system, "export", "nobody-at-all", test_id) == {
            **held, "unit_hash": (await told(system, "export", "nobody-at-all", test_id))["unit_hash"], "variant": None,
            "first_seen": None, "last_seen": None, "held": [], "windows": 0, "facts": [],
        }  # fmt: skip
        before = await product.figures(test_id)

        erased = await told(system, "erase", unit, test_id)
        assert erased["unit_hash"] == held["unit_hash"]
        assert erased["batches"] >= 1
        assert erased["left"] == 0
        after = await told(system, "export", unit, test_id)
        assert (after["facts"], after["erased_at"]) == ([], erased["erased_at"])
        now = await product.figures(test_id)  # what was counted stays counted
        for name, kept in itertools.product(("variant_a", "variant_b"), ("request_count", "units", "thumbs_up", "outcomes")):
            assert now[name][kept] == before[name][kept], (name, kept)
        # The same arm as before, and nothing of its own is written down of it any more.
        assert [await product.variant(user=unit) for _ in range(4)] == [arm] * 4
        said = {"token": tokens, "score": 5}
        assert (await product.call("POST", "feedback", "client", json=said)).status_code == 200
        counted = sum(before[name]["request_count"] for name in ("variant_a", "variant_b"))
        await eventually(lambda: _counted(product, test_id, counted + 4))
        later = await told(system, "export", unit, test_id)
        assert (later["facts"], later["windows"]) == ([], after["windows"])
        left = [
            fact
            for number in range(20)  # but for those whose facts came in one batch with the unit's
            for test in (await system.api("POST", "units/export", {"unit": f"somebody-{number}"}))["tests"]
            for fact in test["facts"]
        ]
        assert {fact["kind"] for fact in left} == {"admitted", "final"}

        file = tmp_path / "unit"
        file.write_text(unit)
        shown = await asyncio.to_thread(cypria, system, "erase", str(file), "--source", "user")
        assert shown.returncode == 0, shown.stderr
        assert test_id in shown.stdout
        assert "what remains: hashes in stored windows" in " ".join(shown.stdout.split())
        assert unit not in shown.stdout
        for words, stdin, role, status, text in (
            (("export",), "", "admin", 2, "no unit"), (("export", str(tmp_path / "none")), "", "admin", 2, "cannot be read"),
            (("export", "--source", "client_address"), "x", "admin", 1, "assignment.unit names"),
            (("export",), "x", "operator", 1, "admin"),
        ):  # fmt: skip
            failed = await asyncio.to_thread(cypria, system, *words, stdin=stdin, role=role)
            assert (failed.returncode, text in failed.stderr) == (status, True), (words, failed.stderr)
    records = (await product.call("GET", "audit?limit=1000")).json()["records"]
    asked = {(r["action"], r["status"], r["target"]) for r in records if r["action"].startswith("units-")}
    (alias,) = {target for action, status, target in asked if action == "units-erase"}
    assert alias.startswith("unit:")
    assert held["unit_hash"] not in json.dumps(records)
    assert {("units-export", 403, None), ("units-export", 200, alias)} <= {(a, s, t or None) for a, s, t in asked}


async def _counted(product: Product, test_id: str, count: int) -> bool:
    figures = await product.figures(test_id)
    return sum((figures.get(arm) or {}).get("request_count", 0) for arm in ("variant_a", "variant_b")) == count


async def test_of_marked_traffic_no_file_table_page_or_log_holds_a_word(product: Product) -> None:
    system = product.system
    with product.behaving(ECHO, ECHO):
        async with somebody(system) as client, product.test(traffic_split_percent=50) as test_id:
            await client.get("/ready", headers=headers())
            first = await client.post("/v1/chat/completions", json=body(), headers=headers())
            assert first.headers["x-ab-test-id"] == test_id
            said = {"token": first.headers["x-ab-feedback-token"], "thumbs": "up", "score": 4}
            assert (await client.post("/v1/ab-testing/feedback", json=said, headers=headers())).status_code == 200
            assert MARKS["prompt"] in str(first.json())  # the engine echoes
    async with somebody(system) as client, product.test(traffic_split_percent=50) as test_id:
        await _requests(product, client)
        await _hang_ups(product, client)
        await _nonsense(client)
        await _over_the_bus(product)
        figures = await eventually(lambda: _seen(product, test_id))
        assert figures["variant_a"]["request_count"] + figures["variant_b"]["request_count"] > 20
        checkpoints = await eventually(lambda: _checkpoints(system))
        assert any(test_id.encode() in text for _, text in checkpoints)
        pages = [
            (path, (await product.call("GET", path)).content)
            for path in ("status", "history", "audit?limit=1000", "monitoring/alerts", "config", "models", f"tests/{test_id}",
                         f"tests/{test_id}/report", f"tests/{test_id}/evidence", "/metrics", "/ready")
        ]  # fmt: skip
        tables = await _tables(system)
        shown = dict(tables)
        assert test_id.encode() in shown["table window_cells"]
        assert shown["table audit_chain"]
        assert held([*pages, *tables, *checkpoints]) == []
    assert await asyncio.to_thread(system.stop) == 0
    kept = files(system.folder, system.config)
    assert any(test_id.encode() in text for name, text in kept if name.startswith("data/nats/"))
    log = system.log.read_text()
    assert '"level": "debug"' in log
    assert len(kept) > 20
    assert held(kept) == []


async def _seen(product: Product, test_id: str) -> dict[str, Any]:
    figures = await product.figures(test_id)
    counted = sum((figures.get(arm) or {}).get("request_count", 0) for arm in ("variant_a", "variant_b"))
    return figures if counted > 20 else {}
