"""The contract's lines, one by one, on a running system: what users and attackers see from outside (operators: the
module `test_operator`).

One system for the whole module; the last test stops it with streams in flight and looks at what it left on the disk.
"""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from tests.e2e.hostile import INVALID, STREAMED, TOO_LARGE, head, sized
from tests.e2e.product import KEYS, SLASHED, UNICODE, Product, bus_caller, refused, running_product
from tests.fakes.openai_server import Behaviour
from tests.harness import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKS = ("SECRETMARK", "PROMPTMARK", "USERMARK", "SESSIONMARK", "CACHEMARK", "zephyr", "willow")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Product]:
    async with running_product(tmp_path_factory.mktemp("contract")) as product:
        yield product


# -------------------------------------------------------------------------------------------------- inference


async def test_units_stick_in_their_order_and_only_move_to_b_when_the_share_grows(product: Product) -> None:
    pick = random.Random(5)
    async with product.test(traffic_split_percent=50) as test_id:
        users = [f"USERMARK{n}" for n in range(40)]
        of = {user: await product.variant(user=user) for user in users}
        assert set(of.values()) == {"a", "b"}
        for _ in range(30):
            session, user, header, cache = (pick.choice(users) for _ in range(4))
            by_header = {"X-User-ID": header}
            assert (
                await product.variant(headers={"X-Session-ID": session, **by_header}, user=user, prompt_cache_key=cache)
                == of[session]
            )
            assert await product.variant(headers=by_header, user=user, prompt_cache_key=cache) == of[user]
            assert await product.variant(headers=by_header, prompt_cache_key=cache) == of[header]
            assert await product.variant(headers={"X-Session-ID": ""}, user="", prompt_cache_key=cache) == of[cache]
        assert {await product.variant() for _ in range(24)} == {"a", "b"}  # one key, one address, no unit: still split
        before: set[str] = set()
        for percent in (0, 5, 5.01, 30, 99.99, 100):
            await product.system.api("PATCH", "traffic-split", {"traffic_split_percent": percent, "test_id": test_id})
            in_b = {user for user in users if await product.variant(user=user) == "b"}
            assert before <= in_b
            before = in_b
        assert before == set(users)


async def test_bodies_pass_untouched_and_answers_say_who_gave_them(product: Product) -> None:
    body = (
        b'{ "model":"stable",\t"messages":[{"role":"user","content":"PROMPTMARK \\u00e9 \xc3\xa9"}], "max_tokens":2,'
        b' "weird":{"a":[1,2.50,1e3]}, "big":123456789012345678901234567890, "stream":false }\n'
    )
    headers = {"X-Request-ID": "mine 1", "X-Session-ID": "SESSIONMARK"}
    async with product.test(traffic_split_percent=0) as test_id:
        response = await product.call("POST", "/v1/chat/completions", "client", content=body, headers=headers)
        assert response.status_code == 200
        assert product.stable.seen.raw[-1] == body
        assert "SECRETMARK" not in str(product.stable.seen.headers[-1])
        assert response.headers["x-request-id"] == "mine 1"
        assert (response.headers["x-ab-test-id"], response.headers["x-ab-test-variant"]) == (test_id, "a")
        assert response.headers["x-ab-feedback-token"]
        assert "x-ab-test-id" not in (await product.chat("canary")).headers
        with product.behaving(Behaviour(status=429, retry_after="7")):
            response = await product.chat(headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "fake")
        assert (response.headers["x-ab-test-variant"], response.headers["retry-after"]) == ("a", "7")
        assert response.headers["x-request-id"] == "mine 1"
    assert refused(await product.chat("nobody"), 404)["param"] == "model"
    generated = await product.call(
        "POST", "/generate", "client", json={"model": "stable", "prompt": "hi", "max_tokens": 3}
    )
    assert generated.json()["text"][0].startswith("hi")


async def test_the_openai_sdk_sync_and_async(product: Product) -> None:
    url, key = f"{product.system.url}/v1", KEYS["client"]
    messages: Any = [{"role": "user", "content": "PROMPTMARK"}]

    def sync() -> None:
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert {SLASHED, UNICODE, "stable"} <= {model.id for model in client.models.list()}
            whole = client.chat.completions.create(model="stable", messages=messages, max_tokens=3)
            assert whole.usage and whole.usage.completion_tokens == 3
            chunks = list(client.chat.completions.create(
                model="stable", messages=messages, max_tokens=3, stream=True, stream_options={"include_usage": True}))  # fmt: skip
            assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 3
            assert (
                "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                == whole.choices[0].message.content
            )
            assert client.completions.create(model="stable", prompt="x", max_tokens=2).choices[0].text
            assert len(client.embeddings.create(model="stable", input=["x", "y"]).data) == 2

    await asyncio.to_thread(sync)
    async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="stable", messages=messages, max_tokens=3, stream=True)
        chunks = [chunk async for chunk in stream]
        assert not any(chunk.usage for chunk in chunks)  # nobody asked for it
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=messages)
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_weights_that_are_not_the_configured_ones_do_not_serve_and_the_reason_is_told(product: Product) -> None:
    assert (await product.call("POST", "models/tampered/load")).status_code == 200

    async def failed() -> dict[str, Any] | None:
        listed = (await product.call("GET", "models", "viewer")).json()["models"]
        return next((model for model in listed if model["name"] == "tampered" and model["state"] == "failed"), None)

    reason = (await eventually(failed, every_s=0.2))["reason"]
    assert "digest is sha256:" in reason
    assert "restore the files or the digest" in reason
    error = refused(await product.chat("tampered"), 503)
    assert error["code"] == "no_worker"
    assert "it is failed" in error["message"]


async def test_every_way_to_end_is_counted_exactly_once(product: Product) -> None:
    failures = {401: "error_before_first_token", 403: "error_before_first_token", 404: "error_before_first_token",
                500: "error_before_first_token", 408: "timeout", 504: "timeout", 429: "rejected", 503: "rejected"}  # fmt: skip
    expected: Counter[str] = Counter()
    async with product.test(traffic_split_percent=0, failure_criteria={"max_consecutive_errors": 100_000}) as test_id:
        for status in (*failures, 400, 413, 422):
            with product.behaving(Behaviour(status=status)):
                assert (await product.chat()).status_code == status
            expected[failures.get(status, "client_error")] += 1
        for behaviour, outcome in (
            (Behaviour(die_after=2), "error_mid_stream"), (Behaviour(error_after=2), "error_mid_stream"),
            (Behaviour(no_end=True), "error_mid_stream"), (Behaviour(hang_after=2), "timeout"),
            (Behaviour(text=""), "empty"),
        ):  # fmt: skip
            with product.behaving(behaviour):
                response = await product.chat(stream=True)
            assert response.status_code == 200
            assert ("[DONE]" in response.text) is (outcome == "empty")
            assert ("error" in response.text) is (outcome != "empty")
            expected[outcome] += 1
        with product.behaving(Behaviour(hang=True)):
            assert (await product.chat()).status_code == 504
        expected["timeout"] += 1
        with product.behaving(Behaviour(chunk_delay_s=0.05)):
            cancelled = product.stable.seen.cancelled
            async with product.system.client.stream(
                "POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {KEYS['client']}"},
                json={"model": "stable", "messages": [], "stream": True, "max_tokens": 400},
            ) as response:  # fmt: skip
                await anext(response.aiter_bytes())
            await eventually(lambda: product.stable.seen.cancelled == cancelled + 1)
        expected["client_cancel"] += 1
        for _ in range(5):
            assert (await product.chat()).status_code == 200
        expected["length"] += 5
        refused(await product.call("POST", "/v1/chat/completions", "client", content=b'{"model": "stable"'), 400)

        async def counted() -> bool:
            return (await product.figures(test_id))["variant_a"]["outcomes"] == dict(expected)

        await eventually(counted, 60, 0.2)
        a, b = (await product.figures(test_id)).values()
        total = sum(expected.values())
        errors = sum(expected[o] for o in ("error_before_first_token", "error_mid_stream", "timeout", "rejected"))
        assert (a["admitted"], a["request_count"], a["client_errors"]) == (total, total - 3, 3)
        assert (a["error_count"], a["client_cancels"], a["successful_requests"]) == (errors, 1, total - 3 - errors - 1)
        assert math.isclose(a["error_rate"], 100 * errors / (total - 3))
        assert (a["in_flight"], a["overdue"], b["request_count"]) == (0, 0, 0)


async def test_a_failing_canary_is_charged_and_its_users_served(product: Product) -> None:
    async with product.test(traffic_split_percent=100, failure_criteria={"max_consecutive_errors": 1000}) as test_id:
        with product.behaving(canary=Behaviour(status=500)):
            for _ in range(12):
                response = await product.chat()
                assert (response.status_code, response.headers["x-ab-test-variant"]) == (200, "b")

        async def counted() -> bool:
            b = (await product.figures(test_id))["variant_b"]
            return (b["request_count"], b["error_count"], b["fallback_count"], b["in_flight"]) == (12, 12, 12, 0)

        await eventually(counted, 60, 0.2)
        assert (await product.figures(test_id))["variant_a"]["request_count"] == 0


async def test_a_watched_healthy_test_goes_on_and_nothing_is_said_twice(product: Product) -> None:
    await product.system.api("POST", "monitoring/start?check_interval_seconds=0.5")
    async with product.test(traffic_split_percent=50, auto_rollback=True) as test_id:
        before = (await product.system.api("GET", "monitoring/status"))["checks_total"]
        for _ in range(120):
            await product.chat()

        async def checked() -> bool:
            return (await product.system.api("GET", "monitoring/status"))["checks_total"] >= before + 8

        await eventually(checked, 60, 0.2)
        assert (await product.system.status(test_id))["status"] == "running"
        assert (await product.system.status(test_id))["effective_split_percent"] == 50

        async def told() -> list[dict[str, Any]]:
            return list((await product.system.api("GET", f"monitoring/alerts?test_id={test_id}"))["alerts"])

        alerts = await eventually(told)
        assert [alert["level"] for alert in alerts] == ["INFO"]
        result = await product.system.api("POST", "stop", {"test_id": test_id})
        assert result["decision"] in {"inconclusive", "keep_a"}  # two identical arms


# ------------------------------------------------------------------------------------------ raw sockets, bus


async def test_hostile_bytes_get_one_clear_answer_each(product: Product) -> None:
    for data in INVALID:
        answer = await product.raw(data)
        assert answer.startswith(b"HTTP/1.1 400 "), (data[:200], answer[:200])
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Set-Cookie" not in answer.split(b"\r\n\r\n")[0]
    for data in TOO_LARGE:
        assert (await product.raw(data)).startswith(b"HTTP/1.1 413 "), data[:200]
    assert (await product.raw(head() + b"X: " + b"y" * 65_536 + b"\r\n" + sized())).startswith(b"HTTP/1.1 431 ")
    for data in (head()[:30], head() + b"Content-Length: 100\r\n\r\n{"):
        assert (await product.raw(data, half_close=True)).startswith(b"HTTP/1.1 400 ")
    last = head() + b"Connection: close\r\n" + sized()
    assert (await product.raw((head() + sized()) * 2 + last)).count(b"HTTP/1.1 200 OK") == 3
    for own in (b"x" * 10_240, b"\xc3\xbc", b"\t\t\t"):
        answer = await product.raw(head() + b"X-Request-ID: " + own + b"\r\nConnection: close\r\n" + sized())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert own not in answer
    old = await product.raw(head(version="1.0") + sized(STREAMED))
    assert b"chunked" not in old.lower()
    assert old.endswith(b"data: [DONE]\n\n")
    assert (await product.chat()).status_code == 200


async def test_the_same_over_the_bus_for_callers_and_nothing_else(product: Product) -> None:
    body = {"model": "stable", "messages": [{"role": "user", "content": "PROMPTMARK"}], "max_tokens": 3}
    async with bus_caller(product.system) as caller:
        async with product.test(traffic_split_percent=100) as test_id:
            own = {"X-Request-ID": "bus-1", "X-Session-ID": "SESSIONMARK"}
            (whole,) = await caller.ask("cypria.request.chat", body, **own)
            assert (whole.headers["Cypria-Status"], whole.headers["X-Request-ID"]) == ("200", "bus-1")
            assert (whole.headers["X-AB-Test-ID"], whole.headers["X-AB-Test-Variant"]) == (test_id, "b")
            streamed = await caller.ask("cypria.request.chat", {**body, "stream": True})
            assert len(streamed) > 1
            assert b"".join(m.data for m in streamed).endswith(b"data: [DONE]\n\n")
        assert await caller.status("cypria.request.chat", body, None) == "401"
        assert await caller.status("cypria.request.chat", b"{") == "400"
        assert await caller.status("cypria.request.chat", {**body, "model": "nobody"}) == "404"
        for verb, role, status in (("status", None, "401"), ("status", "client", "403"), ("status", "viewer", "200"),
                                   ("start", "viewer", "403"), ("start", "operator", "422"), ("config", "operator", "403"),
                                   ("stop", "operator", "404"), ("dance", "admin", "404")):  # fmt: skip
            assert await caller.status(f"cypria.control.{verb}", {}, role) == status, verb
        finished, key = product.stable.seen.finished, {"Authorization": f"Bearer {KEYS['client']}"}
        for elsewhere in ("cypria.rollback.x", "$KV.experiments.stable", "cypria.metric.0"):
            await caller.nc.publish("cypria.request.chat", json.dumps(body).encode(), reply=elsewhere, headers=key)
            await caller.nc.publish(elsewhere, b"{}")
        await caller.nc.subscribe("_INBOX.>")
        await caller.nc.subscribe("cypria.>")
        assert await caller.status("cypria.request.chat", body) == "200"
        assert product.stable.seen.finished == finished + 1
        await eventually(lambda: len(caller.denied) == 5)


# ------------------------------------------------------------------------------------------------ last things


async def test_a_stop_lets_streams_finish_and_leaves_no_word_of_anybody_behind(product: Product) -> None:
    system = product.system
    outputs = [
        (await product.call("GET", path)).text
        for path in ("status", "history", "audit", "monitoring/alerts", "config", "/metrics")
    ]
    gate = asyncio.Event()
    with product.behaving(Behaviour(gate=gate)):
        streams = [
            asyncio.create_task(product.chat(stream=True, max_tokens=20, user="USERMARK", prompt_cache_key="CACHEMARK"))
            for _ in range(4)
        ]
        await eventually(lambda: product.stable.seen.running == len(streams))
        stopping = asyncio.create_task(asyncio.to_thread(system.stop))
        await eventually(lambda: _closed(product))
        gate.set()
        responses = await asyncio.gather(*streams)
        assert await stopping == 0
    assert [response.status_code for response in responses] == [200] * 4
    assert all(response.text.endswith("data: [DONE]\n\n") for response in responses)
    kept = [path for path in system.folder.rglob("*") if path.is_file() and path != system.config]
    assert len(kept) > 20
    for mark in MARKS:
        assert not [path for path in kept if _holds(path, mark)], mark
        assert not [text for text in outputs if mark in text], mark


async def _closed(product: Product) -> bool:
    async with httpx.AsyncClient(base_url=product.system.client.base_url) as client:
        try:
            await client.get("/health")
        except httpx.TransportError:
            return True
    return False


def _holds(path: Path, mark: str) -> bool:
    return mark.encode() in path.read_bytes()
