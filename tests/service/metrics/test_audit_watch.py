"""Anomalies as alerts, by the real service: each raised once and resolved once, also by whoever comes after a kill -9."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from schemas import streams, subjects
from schemas.v1.alerts import AuditRecord
from schemas.v1.cloudevent import dump, envelope
from services._runtime.clock import now_ms
from tests.harness import NatsServer, eventually
from tests.service.metrics.process import Metrics

ANOMALIES = {"window_seconds": 30, "quiet_minutes": 0.1, "refused_by_source": 5, "refused_in_all": 1000}


class Control:
    """What routers would write down."""

    def __init__(self, js: Any) -> None:
        self._js = js
        self._n = 0

    async def call(self, **fields: Any) -> None:
        self._n += 1
        known: dict[str, Any] = {
            "at_ms": now_ms(), "actor": "anonymous", "role": "none", "action": "status", "source": "aa", "status": 401,
            "outcome": "invalid_api_key", "request_id": f"r{self._n}", "needs": "viewer",
        }  # fmt: skip
        record = AuditRecord(**{**known, **fields})
        await self._js.publish(subjects.audit("router"), dump(envelope("audit", f"a.{self._n}", "router", record.at_ms, record)))


async def told(server: NatsServer) -> Counter[tuple[str, bool]]:
    """(incident, resolved) of everything in ALERTS."""
    nc = await server.connect("metrics")
    try:
        js = nc.jetstream()
        state = (await js.stream_info(streams.ALERTS.name)).state
        found: Counter[tuple[str, bool]] = Counter()
        for sequence in range(max(1, state.first_seq), state.last_seq + 1):
            alert = json.loads((await js.get_msg(streams.ALERTS.name, sequence)).data or b"")["data"]
            found[alert["incident"], alert["resolved"]] += 1
        return found
    finally:
        await nc.close()


async def test_each_is_raised_once_and_resolved_once_whoever_is_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    metrics = Metrics(
        nats_server, tmp_path / "metrics", f"chdb://{tmp_path / 'chdb'}", security={"anomalies": ANOMALIES}
    )
    with contextlib.ExitStack() as stack:
        metrics.start()
        stack.callback(metrics.kill)
        await metrics.ready()
        nc = await nats_server.connect("router")
        control = Control(nc.jetstream())
        ops: dict[str, Any] = {"actor": "ops", "role": "admin", "action": "key-use", "status": 200, "outcome": "first_use"}
        await control.call(**ops, source="home")
        for _ in range(4):
            await control.call()
            await control.call(source="bb", status=404)
        await control.call(**ops, source="away")
        await control.call(
            actor="app", role="operator", source="cc", action="models-load", status=403, needs="admin", changes=True
        )
        await control.call(status=429)
        counted = {"refused": 9, "for_key_role_or_rate": 5, "status_401": 5, "status_404": 4}
        await control.call(action="further-refusals", source="dd", status=429, after=counted)
        expected = {"security.refused.source.aa", "security.refused.source.dd", "security.new_place.ops.away", "security.admin_changes.app"}
        raised = Counter({(incident, False): 1 for incident in expected})

        async def raised_all() -> bool:
            return await told(nats_server) >= raised

        await eventually(raised_all)
        metrics.kill()
        metrics.start()
        await metrics.ready()
        resolved = Counter({(incident, True): 1 for incident in expected})

        async def over() -> bool:
            return await told(nats_server) >= raised + resolved

        await eventually(over)
        assert await told(nats_server) == raised + resolved
        metrics.kill()
        metrics.start()
        await metrics.ready()
        # Another key of the same kind shows that the new process has looked, and told nothing of the old ones again.
        await control.call(**ops, source="bus")
        news = ("security.new_place.ops.bus", False)

        async def told_again() -> bool:
            return news in await told(nats_server)

        await eventually(told_again)
        found = await told(nats_server)
        del found["security.new_place.ops.bus", True]  # it may be over already
        assert found == raised + resolved + Counter([news])
        await nc.close()
