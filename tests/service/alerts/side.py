"""What alerts tests do from outside: raise alerts, ask for the history, run the service in or beside this process."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import yaml

from schemas import subjects
from schemas.v1.alerts import Alert, DeadLetter
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import AlertLevel, TestStatus
from schemas.v1.events import TestEvent
from services.alerts.app import build_app
from services.alerts.domain.backoff import RetryPolicy
from tests.harness import NatsServer, environment, eventually
from tests.service.alerts.webhook import Webhook

ROOT = Path(__file__).resolve().parents[3]
FAST = RetryPolicy(first_s=0.05, cap_s=0.2, max_attempts=20)


class Side:
    def __init__(self, server: NatsServer, webhook: Webhook) -> None:
        self.server = server
        self.webhook = webhook
        self.monitor: Any = None
        self.router: Any = None
        self.processes: list[subprocess.Popen[bytes]] = []

    async def connect(self) -> None:
        self.monitor = await self.server.connect("monitor")
        self.router = await self.server.connect("router")

    async def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(10)
        for client in (self.monitor, self.router):
            await client.close()

    def slack(self, path: str = "hook", **more: Any) -> dict[str, Any]:
        return {"type": "slack", "name": path, "webhook_url": f"{self.webhook.url}/{path}", **more}

    @contextlib.asynccontextmanager
    async def service(
        self, *destinations: dict[str, Any], retry: RetryPolicy = FAST, retention: int = 1000,
        public_url: str | None = None, **sections: Any,
    ) -> AsyncIterator[None]:
        """The service in this process."""
        alerts = {"destinations": list(destinations), "retention": retention, "public_url": public_url}
        app = build_app(self.server.settings("alerts", alerts=alerts, **sections), retry)
        async with app.start_lifespan_context():
            await eventually(self.answers)
            yield

    async def answers(self) -> bool:
        with contextlib.suppress(nats.errors.Error):
            reply = await self.router.request(subjects.query("alerts"), b"{}", timeout=5)
            return "Cypria-Error" not in (reply.headers or {})
        return False

    def process(
        self, tmp_path: Path, *destinations: dict[str, Any], path: Path = ROOT, **sections: Any
    ) -> subprocess.Popen[bytes]:
        """The service as a process of its own; ``path`` is where it finds packages besides."""
        config = tmp_path / "alerts.yaml"
        config.write_text(yaml.safe_dump({
            "alerts": {"destinations": list(destinations)},
            "nats": {"servers": [self.server.url]},
            "data_dir": str(tmp_path / "data"),
            "logging": {"format": "json"},
            **sections,
        }))  # fmt: skip
        with (tmp_path / "alerts.log").open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.alerts", "--config", str(config)], cwd=ROOT, stdout=sink, stderr=sink,
                env=environment(
                    PYTHONPATH=os.pathsep.join([str(ROOT), str(path)]), CYPRIA_NATS__USER="alerts", CYPRIA_SUPERVISOR_PID=str(os.getpid()),
                    CYPRIA_NATS__PASSWORD=self.server.embedded.passwords["alerts"],
                ),
            )  # fmt: skip
        self.processes.append(process)
        return process

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    async def raise_alert(
        self,
        title: str,
        *,
        incident: str | None = None,
        level: AlertLevel = AlertLevel.CRITICAL,
        event_id: str | None = None,
        **fields: Any,
    ) -> str:
        now = int(time.time() * 1000)
        alert = Alert(incident=incident or title, level=level, title=title, message=f"{title}.", at_ms=now, **fields)
        event = envelope("alert", event_id or f"{alert.incident}.{level}", "monitor", now, alert)
        await self.publish(subjects.alert(level), dump(event))
        return event.id

    async def publish(self, subject: str, payload: bytes) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.monitor.jetstream().publish(subject, payload)
                    return
                except (nats.errors.Error, TimeoutError):
                    await asyncio.sleep(0.1)

    async def test_event(self, kind: str, **fields: Any) -> None:
        event = TestEvent(
            **{"test_id": "t1", "version": 2, "status": TestStatus.RUNNING, "model_a": "stable", "model_b": "canary",
               "share_bp": 2000, "at_ms": 1_700_000_000_000, **fields}
        )  # fmt: skip
        payload = dump(envelope(kind, f"{event.test_id}.{event.version}.1", "router", event.at_ms, event))
        await self.router.jetstream().publish(subjects.event(kind), payload)

    async def history(self, **query: Any) -> list[dict[str, Any]]:
        reply = await self.router.request(subjects.query("alerts"), json.dumps(query).encode(), timeout=30)
        assert "Cypria-Error" not in (reply.headers or {}), reply.data
        return list(json.loads(reply.data)["alerts"])

    async def delivered(self, title: str, destination: str = "hook") -> bool:
        if not await self.answers():
            return False
        items = [item for item in await self.history() if item["title"] == title]
        return any(d["destination"] == destination and d["status"] == "sent" for i in items for d in i["deliveries"])

    async def letters(self) -> list[DeadLetter]:
        """Everything in the DLQ, read as the provisioning user, who may create consumers."""
        client = await self.server.connect("provision")
        try:
            js = client.jetstream(timeout=30)
            info = await js.stream_info("DLQ")
            found = []
            for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
                message = await js.get_msg("DLQ", sequence)
                found.append(DeadLetter.model_validate_json(message.data or b""))
            return found
        finally:
            await client.close()

    async def consumers_idle(self) -> bool:
        """Whether every consumer of ALERTS has nothing left in hand or waiting."""
        client = await self.server.connect("provision")
        try:
            infos = await client.jetstream(timeout=30).consumers_info("ALERTS")
            mine = [i for i in infos if str(i.name).startswith("alerts-")]
            return bool(mine) and all(not i.num_pending and not i.num_ack_pending for i in mine)
        finally:
            await client.close()


