"""Two router processes on one bus: keys, limits and the audit are those of both, whichever is asked."""

import asyncio
import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
import pytest_asyncio
import yaml

from services._runtime.clock import monotonic
from services._runtime.nats_server import free_port
from tests.fakes.frame_worker import FrameWorker
from tests.harness import NatsServer, environment, eventually
from tests.service.router.rig import MODELS, chat
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = {name: f"{name}-key" for name in ("admin", "admin2", "gone", "viewer", "limited")}
PER_MINUTE, BURST = 60, 40


class Process:
    """One of the two."""

    def __init__(self, server: NatsServer, folder: Path, name: str) -> None:
        self.port = free_port()
        self.config = folder / f"{name}.yaml"
        nats = {"servers": [server.url], "user": "router", "password": server.embedded.passwords["router"]}
        keys = [
            {"name": name, "role": "viewer" if name in {"viewer", "limited"} else "admin",
             "key_sha256": hashlib.sha256(key.encode()).hexdigest()}
            for name, key in KEYS.items()
        ]  # fmt: skip
        limits = {"control_per_minute": PER_MINUTE, "control_burst": BURST}
        sections = {"data_dir": str(folder / name), "http": {"port": self.port}, "nats": nats, "models": MODELS,
                    "security": {"api_keys": keys, "rate_limit": limits}}  # fmt: skip
        self.config.write_text(yaml.safe_dump(sections))
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    async def start(self) -> None:
        """Start it where it does not run; returns when it is ready."""
        if self.process is None or self.process.poll() is not None:
            with self.config.with_suffix(".log").open("ab") as sink:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "services.router", "--config", str(self.config)],
                    cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), stdout=sink, stderr=sink,
                )  # fmt: skip
            await eventually(self.ready, 60, 0.05)

    async def ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.config.with_suffix(".log").read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return (await self.client.get("/ready")).status_code == 200
        return False

    async def stop(self) -> None:
        await self.client.aclose()
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, 60)

    async def infer(self, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return (await self.client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code

    async def becomes(self, key: str, expected: int) -> None:
        async def so() -> bool:
            return await self.infer(key) == expected

        await eventually(so)

    async def manage(self, path: str, **body: object) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {KEYS['admin']}"}
        reply = await self.client.post(f"/v1/ab-testing/keys{path}", json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def ask(self, key: str, request_id: str = "") -> int:
        """What a command is answered."""
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": request_id}
        return (await self.client.post("/v1/ab-testing/stop", json={}, headers=headers)).status_code


class Pair:
    """Both, on one bus with a worker of the model stable. ``at_once``: what the second answered as soon as it was ready."""

    def __init__(self, server: NatsServer, folder: Path) -> None:
        self.nats = server
        self.one, self.two = Process(server, folder, "one"), Process(server, folder, "two")
        self.at_once: dict[str, int] = {}

    async def start(self) -> None:
        await self.one.start()
        await self.one.manage("/gone/revoke")
        early = (await self.one.manage("", name="early", role="client"))["key"]
        await self.one.becomes(early, 200)
        await self.two.start()
        self.at_once = {"gone": await self.two.infer(KEYS["gone"]), "early": await self.two.infer(early)}


    async def both_known(self) -> bool:
        """Whether each knows of the other, and so enforces its share."""
        shown = [(await router.client.get("/metrics")).text for router in (self.one, self.two)]
        return all(re.search(r"^cypria_router_peers 2\.0$", text, re.MULTILINE) for text in shown)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("routers")
    server = NatsServer(folder / "nats-data")
    server.start()
    pair = Pair(server, folder)
    try:
        await server.provision()
        worker = await FrameWorker("stable", "w00000000").start(await server.connect("inference"))
        await pair.start()
        yield pair
        await worker.stop()
    finally:
        await pair.one.stop()
        await pair.two.stop()
        server.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(started: Pair) -> Pair:
    """Both run, also where a test before has killed one."""
    await asyncio.gather(started.one.start(), started.two.start())
    return started


async def test_a_router_that_starts_knows_every_key_before_it_is_ready(pair: Pair) -> None:
    assert pair.at_once["gone"] == 401
    assert pair.at_once["early"] in {200, 503}  # its workers may not have been heard yet


async def test_what_is_done_to_a_key_holds_on_both_and_ends_its_streams(pair: Pair) -> None:
    one, two = pair.one, pair.two
    app = (await one.manage("", name="app", role="client"))["key"]
    eye = (await two.manage("", name="eye", role="viewer"))["key"]
    for router in (one, two):
        await router.becomes(app, 200)
        await router.becomes(eye, 200)

    said: Counter[str] = Counter()

    async def watch(router: Process, name: str, key: str) -> bool:
        """Whether it was let in, once the stream has ended."""
        headers = {"Authorization": f"Bearer {key}"}
        async with router.client.stream("GET", "/v1/ab-testing/events", headers=headers) as reply:
            async for line in reply.aiter_lines():
                said[f"{name} connected"] += line == ": connected"
        said[f"{name} ended"] += 1
        return reply.status_code == 200

    streams = [asyncio.create_task(watch(router, name, key)) for router in (one, two) for name, key in (("eye", eye), ("viewer", KEYS["viewer"]))]
    await eventually(lambda: said["eye connected"] == said["viewer connected"] == 2)
    await one.manage("/eye/revoke")
    await eventually(lambda: said["eye ended"] == 2)
    assert not said["viewer ended"], "another key's streams go on"
    await two.manage("/viewer/revoke")
    await asyncio.wait_for(asyncio.gather(*streams), 60)
    for router in (one, two):
        await router.becomes(eye, 401)
        await router.becomes(KEYS["viewer"], 401)

    for life_s in (1, 4, 16):  # one that is over before it was used tells nothing
        short = (await one.manage("", name=f"short-{life_s}", role="viewer", expires_in_days=life_s / 86_400))["key"]
        ends = monotonic() + life_s
        while await two.infer(short) != 200 and monotonic() < ends:
            pass
        if await asyncio.wait_for(watch(two, "short", short), 60):  # it ends by the clock
            break
    else:
        pytest.fail("no such key was let in")

    turned = await two.manage("/app/rotate", overlap_seconds=0)
    for router in (one, two):
        await router.becomes(app, 401)
        await router.becomes(turned["key"], 200)


async def test_a_limit_is_shared_and_not_doubled(pair: Pair) -> None:
    routers = (pair.one, pair.two)
    headers = {"Authorization": f"Bearer {KEYS['limited']}"}

    async def allowed(router: Process) -> int:
        replies = await asyncio.gather(*(router.client.get("/v1/ab-testing/models", headers=headers) for _ in range(BURST)))
        assert {reply.status_code for reply in replies} <= {200, 429}
        return sum(reply.status_code == 200 for reply in replies)

    await eventually(pair.both_known)
    began = monotonic()
    sums = await asyncio.gather(*(allowed(router) for router in routers))
    assert BURST <= sum(sums) <= BURST + PER_MINUTE / 60 * (monotonic() - began) + 2, sums


async def test_a_keys_own_limits_are_shared_likewise_and_kept_by_rotation(pair: Pair) -> None:
    routers = (pair.one, pair.two)
    made = await pair.one.manage("", name="own", role="viewer", requests_per_minute=60, control_per_minute=6)
    turned = await pair.two.manage("/own/rotate", overlap_seconds=0)
    assert [(one["requests_per_minute"], one["control_per_minute"]) for one in (made, turned)] == [(60, 6)] * 2
    for router in routers:
        await router.becomes(turned["key"], 200)
    await eventually(pair.both_known)
    began = monotonic()
    sent = [router.infer(turned["key"]) for router in routers for _ in range(20)]
    statuses = Counter(await asyncio.gather(*sent))
    assert set(statuses) == {200, 429}
    assert statuses[200] <= 60 / 6 + 60 / 60 * (monotonic() - began) + 2, statuses
    assert {await pair.one.infer(KEYS["admin"]) for _ in range(20)} == {200}, "others have no such limit"
    headers = {"Authorization": f"Bearer {turned['key']}"}
    asked = [(await router.client.get("/v1/ab-testing/models", headers=headers)).status_code for router in routers for _ in range(3)]
    assert (asked[0], asked[3], 429 in asked[1:3], 429 in asked[4:]) == (200, 200, True, True), asked


async def test_where_an_operators_key_is_first_used_for_a_model_is_in_the_audit_and_a_clients_is_not(pair: Pair) -> None:
    for role in ("operator", "client"):
        key = (await pair.one.manage("", name=f"first-{role}", role=role))["key"]
        for router in (pair.one, pair.two):
            await router.becomes(key, 200)
            assert await router.infer(key) == 200

    async def uses() -> list[dict[str, Any]] | None:
        found = [one for one in await audit(pair.nats) if one["actor"].startswith("first-")]
        return found if len(found) >= 2 else None

    found = await eventually(uses)
    assert [(one["action"], one["actor"], one["role"], one["target"], one["status"]) for one in found] == [
        ("key-use", "first-operator", "operator", "inference", 200)
    ] * 2, "once for each process"
    assert len({one["source"] for one in found}) == 1


async def test_what_was_answered_is_in_the_audit_though_the_router_is_killed_at_once(pair: Pair) -> None:
    router, answered = pair.two, set()
    key = (await pair.one.manage("", name="small", role="client"))["key"]
    await router.becomes(key, 200)
    caller = await pair.nats.connect("caller")

    async def over_http(number: int) -> None:
        key_of = {0: key, 1: "wrong", 2: KEYS["admin2"]}[number % 3]
        with contextlib.suppress(httpx.TransportError):
            status = await router.ask(key_of, f"http-{number}")
            assert status == {0: 403, 1: 401, 2: 404}[number % 3]
            answered.add(f"http-{number}")
            if len(answered) == 8:
                router.process.kill()

    await asyncio.gather(*(over_http(number) for number in range(15)))
    assert len(answered) >= 8
    router.process.wait(10)

    async def over_the_bus() -> bool:
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "bus"}
        with contextlib.suppress(nats.errors.TimeoutError):  # the server may not have noticed the other's death yet
            reply = await caller.request("cypria.control.stop", b"{}", timeout=10, headers=headers)
            return (reply.headers or {})["Cypria-Status"] == "403"
        return False

    await eventually(over_the_bus, 60)
    pair.one.process.kill()
    pair.one.process.wait(10)
    recorded = {record["request_id"] for record in await audit(pair.nats)}
    assert answered | {"bus"} <= recorded
    await caller.close()


async def audit(server: NatsServer) -> list[dict[str, Any]]:
    """Every record in AUDIT."""
    nc = await server.connect("metrics")
    try:
        js = nc.jetstream()
        last = (await js.stream_info("AUDIT")).state.last_seq
        return [json.loads((await js.get_msg("AUDIT", number)).data or b"")["data"] for number in range(1, last + 1)]
    finally:
        await nc.close()
