"""NATS has no room left: users notice nothing, nothing is lost, and what cannot be kept is refused or waits."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from schemas.subjects import PARTITIONS
from services._runtime.clock import monotonic
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import NatsServer, eventually
from tests.system import running

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
SAY_S = 10
"""How often a partition may say in the log that its windows are not taken."""


def restart(server: NatsServer, *, full: bool) -> None:
    """The server again, with less room than its streams take or with all of it."""
    config = Path(server.embedded.command[-1])
    text = config.read_text().replace("  max_file_store: 1KB\n", "")
    config.write_text(text.replace("jetstream {\n", "jetstream {\n  max_file_store: 1KB\n") if full else text)
    server.kill(signal.SIGTERM)
    server.start()


async def test_with_a_full_disk_requests_are_answered_and_everything_is_counted_later(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "bus")
    server.start()
    bus = {"servers": [server.url], "credentials_file": str(tmp_path / "bus" / "nats" / "passwords.json")}
    answered: Counter[str] = Counter()
    try:
        async with FakeOpenAI() as stable, FakeOpenAI() as canary, running(tmp_path, engine_config(stable, canary, nats=bus)) as system:

            async def ask() -> httpx.Response:
                body = {"model": "stable", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
                one = await system.client.post("/v1/chat/completions", json=body)
                if one.status_code == 200:
                    answered[one.headers["x-ab-test-variant"]] += 1
                return one

            async def variants() -> set[str]:
                """Those of twenty requests, all of which are answered."""
                found = await asyncio.gather(*(ask() for _ in range(20)))
                assert [one.text for one in found if one.status_code != 200] == []
                return {one.headers["x-ab-test-variant"] for one in found}

            async def back() -> bool:
                """Whether all have found the server again, which is not what this is about."""
                return (await ask()).status_code == 200

            async def figures() -> dict[str, int]:
                metrics = (await system.status(test_id))["metrics"] or {}
                return {variant[-1]: one["request_count"] for variant, one in metrics.items()}

            async def both() -> bool:
                return await variants() == {"a", "b"}

            async def stable_alone() -> bool:
                return await variants() == {"a"}

            async def counted() -> bool:
                return await figures() == dict(answered)

            async def as_before() -> bool:
                return await figures() == before

            async def said() -> int:
                return sum(line.get("event") == "window_not_stored" for line in system.logs())

            async def waiting() -> bool:
                return "facts" in ((await system.status(test_id))["degraded"] or [])

            test_id = await system.start_test(traffic_split_percent=50, auto_rollback=False)
            await eventually(both, 60)
            await eventually(counted, 60, 0.2)

            restart(server, full=True)
            began, before = monotonic(), dict(answered)
            await eventually(back, 60)
            await variants()
            await eventually(waiting, 60, 0.2)
            refused = await system.client.post("/v1/ab-testing/start", json={"model_a": "canary", "model_b": "stable"})
            assert refused.status_code == 503, refused.text
            assert int(refused.headers["retry-after"]) >= 1
            assert "the log of nats-server whether its disk is full" in refused.json()["error"]["message"]
            assert (await system.client.get("/ready")).status_code == 200
            await eventually(as_before, 60, 0.2)
            # its monitor sees nothing: its lease ends
            await eventually(stable_alone, 90, 1)
            assert await eventually(said, 60, 0.5) <= PARTITIONS * ((monotonic() - began) / SAY_S + 2)

            restart(server, full=False)
            await eventually(back, 60)
            await eventually(both, 90, 0.5)
            await eventually(counted, 90, 0.3)
            assert (await system.status(test_id))["status"] == "running"
            assert (await system.client.post("/v1/ab-testing/stop", json={"test_id": test_id})).status_code == 200
    finally:
        server.kill()
