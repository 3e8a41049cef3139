"""The chart's release on this machine: three nats-servers, two of each service. One of each is killed while a canary goes
bad: users notice nothing but what was in flight on it, the canary is taken out, and the totals are what users were answered.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest

from infra.make_secrets import DATABASE
from services._runtime.nats_server import find_binary, free_port
from services.metrics.adapters.clickhouse_http import Front
from tests.e2e.cluster import Cluster, Running, released
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import environment, eventually

RATE = 20


@pytest.fixture
async def clickhouse(tmp_path: Path) -> AsyncIterator[Front]:
    """A ClickHouse server for all, on the real engine."""
    client = clickhouse_connect.get_client(dsn=f"chdb://{tmp_path / 'server'}")
    client.command("CREATE DATABASE IF NOT EXISTS other")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "clickhouse-password").write_text("secret")
    front = Front(str(tmp_path / "server"), "other", DATABASE, "secret", writable=True)
    await front.start("127.0.0.1", 0)
    yield front
    await front.stop()
    client.close()


@dataclass
class Users:
    """Who sends requests to one router or the other, as a Service spreads them: where nobody listens, to the other one."""

    client: httpx.AsyncClient
    routers: list[Running]
    headers: dict[str, str]
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, float, str]] = field(default_factory=list)
    """When such a request began and ended, and what came of it."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    sent: int = 0

    async def keep_asking(self) -> None:
        while True:
            self.sent += 1
            self.tasks.add(task := asyncio.create_task(self._ask(self.sent)))
            task.add_done_callback(self.tasks.discard)
            await asyncio.sleep(1 / RATE)

    async def _ask(self, number: int) -> None:
        began = time.monotonic()
        body = {"model": "stable", "messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 4}
        for router in (self.routers[number % 2], self.routers[1 - number % 2]):
            try:
                answer = await self.client.post(f"{router.url}/v1/chat/completions", json=body, headers=self.headers)
            except httpx.ConnectError:
                continue
            except httpx.TransportError as exc:
                self.failures.append((began, time.monotonic(), repr(exc)))
            else:
                if answer.status_code == 200:
                    self.answers[answer.headers.get("x-ab-test-variant", "-")] += 1
                else:
                    self.failures.append((began, time.monotonic(), answer.text[:300]))
            return
        self.failures.append((began, time.monotonic(), "no router listens"))


async def a_second_more(users: Users) -> None:
    """Until as many requests more were sent as in a second."""
    sent = users.sent
    await eventually(lambda: users.sent >= sent + RATE, 60)


async def figures(client: httpx.AsyncClient, router: Running, test_id: str, headers: dict[str, str]) -> dict[str, Any]:
    """Status of the test and requests of each variant, as one router tells them."""
    status = (await client.get(f"{router.url}/v1/ab-testing/status", params={"test_id": test_id}, headers=headers)).json()
    counts = {name[-1]: one["request_count"] for name, one in (status.get("metrics") or {}).items()}
    return {"status": status.get("status"), **counts}


@pytest.mark.timeout(600)
async def test_users_notice_nothing_while_one_of_each_is_killed_and_a_canary_goes_bad(tmp_path: Path, clickhouse: Front) -> None:
    async with FakeOpenAI() as stable, FakeOpenAI() as canary:
        models = [{"name": name, "engine": "openai", "base_url": one.base_url} for name, one in (("stable", stable), ("canary", canary))]
        cluster = Cluster(tmp_path, {"config": {"models": models, "alerts": {"destinations": [{"type": "log"}]}}}, clickhouse.port)
        assert {component: len(some) for component, some in cluster.parts.items()} == dict.fromkeys(
            ("router", "inference-default", "metrics", "monitor", "alerts"), 2
        )
        async with released(cluster) as client:
            admin = {"Authorization": f"Bearer {cluster.secret('admin-key')}"}
            users = Users(client, cluster.parts["router"], {"Authorization": f"Bearer {cluster.secret('app-key')}"})
            body = {"model_a": "stable", "model_b": "canary", "traffic_split_percent": 50}
            started = await client.post(f"{users.routers[1].url}/v1/ab-testing/start", json=body, headers=admin)
            assert started.status_code == 200, started.text
            test_id = started.json()["test_id"]
            asking = asyncio.create_task(users.keep_asking())
            await eventually(lambda: users.answers["a"] > 5 and users.answers["b"] > 5, 60)

            kills: dict[str, float] = {}
            for component, some in cluster.parts.items():
                some[0].kill()
                kills[component] = time.monotonic()
                await asyncio.sleep(0.5)  # apart from one another, so that each has its own moment
            canary.behaviour.status = 500
            leader = await cluster.leader("KV_experiments")
            cluster.nats[leader].kill()
            kills["nats"] = time.monotonic()

            left = users.routers[1]

            async def rolled_back() -> bool:
                return (await figures(client, left, test_id, admin))["status"] == "rolled_back"

            await eventually(rolled_back, 120, 0.3)
            calm = time.monotonic()
            await a_second_more(users)
            before = len(canary.seen.paths)
            await a_second_more(users)
            assert len(canary.seen.paths) == before, "nobody is sent to a canary that was taken out"
            asking.cancel()
            await asyncio.gather(*users.tasks)

            harmful = [at for component, at in kills.items() if component.startswith(("router", "inference", "nats"))]
            strange = [one for one in users.failures if not (one[0] < calm and one[1] > min(harmful))]
            assert strange == [], (kills, calm)
            assert len(users.failures) <= RATE * len(harmful), users.failures

            # the pod of the killed router is started again, with what it had on its disk
            users.routers[0].start()
            await eventually(lambda: users.routers[0].ready(client), 150, 0.2)
            seen: list[dict[str, Any]] = [{}]

            async def agreed() -> bool:
                one, other = [await figures(client, router, test_id, admin) for router in users.routers]
                seen.append(one)
                return one == other == seen[-2] and "a" in one

            await eventually(agreed, 90, 1.5)
            counted = seen[-1]
            sys.stderr.write(f"answered {dict(users.answers)}, counted {counted}, failed {users.failures}\n")
            assert counted["status"] == "rolled_back"
            # a killed router takes a flush interval's facts with it; what it had answered may not have arrived
            lost = sum(users.answers[variant] - counted[variant] for variant in ("a", "b"))
            assert -len(users.failures) <= lost <= 0.3 * RATE + 5, (dict(users.answers), counted)
            result = (await client.get(f"{left.url}/v1/ab-testing/tests/{test_id}", headers=admin)).json()
            assert result["decision"] == "rollback"
            alerts = (await client.get(f"{left.url}/v1/ab-testing/monitoring/alerts?limit=1000", headers=admin)).json()["alerts"]
            assert len({alert["id"] for alert in alerts}) == len(alerts)


async def peers(client: httpx.AsyncClient, port: int) -> set[str]:
    """Names of the servers that the one monitored at the port has routes to; nothing while it does not answer."""
    try:
        routes = (await client.get(f"http://127.0.0.1:{port}/routez")).json()["routes"] or []
    except httpx.TransportError:
        return set()
    return {route["remote_name"] for route in routes}


def intruder(cluster: Cluster, folder: Path, userinfo: str) -> Running:
    """A nats-server that wants to be one of the cluster's, showing ``userinfo`` to them."""
    one = Running("intruder", [find_binary(), "--config", str(folder / "intruder.conf")], environment(), folder)
    one.port = free_port()
    routes = ", ".join(f'"nats-route://{userinfo}127.0.0.1:{port}"' for port in cluster.routes)
    (folder / "intruder.conf").write_text(
        f"server_name: intruder\nlisten: 127.0.0.1:{free_port()}\nhttp: 127.0.0.1:{one.port}\n"
        f"cluster {{ name: prod-nats, listen: 127.0.0.1:{free_port()}, routes: [{routes}] }}\n"
    )
    one.log.unlink(missing_ok=True)
    return one


async def test_servers_join_the_bus_with_the_password_of_its_routes_alone(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {}, free_port())
    names = {one.name for one in cluster.nats}
    first = cluster.nats[0]
    config = tmp_path / first.name / "nats.conf"
    new, env = config.read_text(), first.env
    # a release whose routes had no password is upgraded: one of its servers is still as it was
    [line] = [line for line in new.splitlines() if line.strip().startswith("authorization { user: routes")]
    config.write_text(new.replace(line, ""))
    password = cluster.secret("nats-routes")
    first.env = {**env, "CYPRIA_ROUTE_URLS": env["CYPRIA_ROUTE_URLS"].replace(f"routes:{password}@", "")}
    assert first.env != env

    async with httpx.AsyncClient(timeout=10) as client:

        async def formed(others: set[str]) -> bool:
            seen = [await peers(client, port) for port in cluster.monitoring]
            return all(some == (names | others) - {one.name} for one, some in zip(cluster.nats, seen, strict=True))

        async def healthy(path: str) -> bool:
            answers = [await client.get(f"http://127.0.0.1:{port}{path}") for port in cluster.monitoring]
            return all(answer.status_code == 200 for answer in answers)

        other = first
        try:
            for one in cluster.nats:
                one.start()
            await eventually(lambda: formed(set()), 60, 0.1)
            first.kill()
            config.write_text(new)
            first.env = env
            first.start()
            await eventually(lambda: formed(set()), 60, 0.1)
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                await eventually(lambda path=cluster.bus.container[probe]["httpGet"]["path"]: healthy(path), 60, 0.1)

            for userinfo in ("", "routes:wrong@"):
                other = intruder(cluster, tmp_path, userinfo)
                other.start()
                await eventually(lambda o=other: o.log.read_text().count("Authorization Violation") >= len(names), 60, 0.1)
                # the refused one takes a route for made until it is told; those who refuse do not
                assert "intruder" not in set().union(*[await peers(client, port) for port in cluster.monitoring])
                other.kill()
            other = intruder(cluster, tmp_path, f"routes:{password}@")
            other.start()
            await eventually(lambda: formed({"intruder"}), 60, 0.1)
        finally:
            for one in (other, *cluster.nats):
                one.kill()
