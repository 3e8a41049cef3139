"""A monitor replica on a real nats-server, with the test playing router and metrics."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import nats

from schemas import streams, subjects
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.control import MonitoringState
from schemas.v1.events import RollbackRequested
from schemas.v1.experiment import Experiment
from schemas.v1.query import Lease
from schemas.v1.windows import Cell, Watermark, Window
from services._runtime.clock import now_ms
from services.monitor.app import build_app
from tests.harness import NatsServer, eventually
from tests.unit.monitor.synthetic import Arm, Traffic, experiment


@dataclass
class Rig:
    """The bus as seen by routers and metrics, and what the monitor sent."""

    server: NatsServer
    router: nats.NATS
    metrics: nats.NATS
    leases: list[Lease] = field(default_factory=list)
    requests: list[CloudEvent[RollbackRequested]] = field(default_factory=list)
    batches: dict[int, int] = field(default_factory=dict)
    second: int = 0
    last: int = 0

    async def put(self, test: Experiment) -> None:
        kv = await self.router.jetstream().key_value(streams.EXPERIMENTS.name)
        await kv.put(subjects.token(test.model_a), test.model_dump_json().encode())

    async def set_monitoring(self, *, active: bool) -> None:
        kv = await self.router.jetstream().key_value(streams.CONTROL.name)
        await kv.put("monitoring", MonitoringState(active=active).model_dump_json().encode())

    async def publish(self, cells: list[Cell], partition: int = 0, raw: bytes | None = None) -> int:
        self.batches[partition] = self.batches.get(partition, 0) + 1
        mark = Watermark(last_seq=1, batches={"r1-1": self.batches[partition]})
        window = Window(partition=partition, writer="w", watermark=mark, cells=cells)
        body = raw if raw is not None else window.model_dump_json().encode()
        ack = await self.metrics.jetstream().publish(subjects.window(partition), body)
        self.last = ack.seq
        return ack.seq

    async def feed(self, traffic: Traffic, until: Callable[[], Any], *, every_s: float = 0.15) -> Any:
        """Windows as they would come, a few each second, until a condition holds."""

        async def step() -> Any:
            self.second += 1
            await self.publish(traffic.cells(self.second), self.second % subjects.PARTITIONS)
            value = until()
            return await value if hasattr(value, "__await__") else value

        return await eventually(step, timeout_s=60, every_s=every_s)

    async def ask(self, name: str, body: dict[str, Any], timeout: float = 30) -> tuple[dict[str, str], dict[str, Any]]:
        reply = await self.router.request(subjects.verdict(name), json.dumps(body).encode(), timeout=timeout)
        return reply.headers or {}, json.loads(reply.data)

    async def stored(self, stream: str) -> list[dict[str, Any]]:
        """Everything that a stream holds, decoded."""
        js = self.router.jetstream()
        state = (await js.stream_info(stream)).state
        return [
            json.loads((await js.get_msg(stream, seq)).data)
            for seq in range(max(1, state.first_seq), state.last_seq + 1)
        ]

    async def alerts(self) -> list[Alert]:
        return [Alert.model_validate(event["data"]) for event in await self.stored("ALERTS")]


@contextlib.asynccontextmanager
async def rig(server: NatsServer) -> AsyncIterator[Rig]:
    router, metrics = await server.connect("router"), await server.connect("metrics")
    made = Rig(server, router, metrics)

    async def on_lease(message: Any) -> None:
        made.leases.append(Lease.model_validate_json(message.data))

    async def on_rollback(message: Any) -> None:
        made.requests.append(CloudEvent[RollbackRequested].model_validate_json(message.data))

    await router.subscribe(subjects.LEASE, cb=on_lease)
    await router.subscribe(subjects.ROLLBACK, cb=on_rollback)
    await router.flush()
    try:
        yield made
    finally:
        await router.close()
        await metrics.close()


@contextlib.asynccontextmanager
async def app(server: NatsServer, **sections: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The whole application, its lifespan included, behind an HTTP client."""
    application = build_app(server.settings("monitor", **sections))
    async with application.start_lifespan_context():
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://monitor") as client:
            yield client


def now_test(**fields: Any) -> Experiment:
    """A test that began now."""
    now = now_ms()
    return experiment(**({"started_ms": now, "created_ms": now, "ends_ms": now + 86_400_000} | fields))


def dead(share_bp: int = 2000) -> Traffic:
    return Traffic(1, share_bp=share_bp, per_second=20, b=Arm(errors=1.0))
