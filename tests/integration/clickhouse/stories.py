"""What tables hold after a canary went bad, made by the product's own parts: facts are folded into windows, the monitor's
domain watches those and asks for a rollback, the router's carries it out, and metrics archives what was published.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.v1.alerts import Alert, AuditRecord
from schemas.v1.common import Outcome, TestStatus
from schemas.v1.windows import Cell, Window
from services._runtime.reader import StreamMessage
from services.metrics.adapters import wire
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_audit import AuditStore
from services.metrics.adapters.clickhouse_store import WindowStore
from services.metrics.adapters.nats_archive import ALERTS, TESTS, Archive
from services.metrics.domain import chain
from services.metrics.domain.fold import Fold
from services.metrics.domain.records import Fact, FactBatch, Feedback, TestClock, Watermark
from services.metrics.domain.rows import Rows
from services.metrics.domain.units import UnitBook
from services.monitor.domain import alerts
from tests.unit.monitor.rollout import Rollout
from tests.unit.monitor.synthetic import START_S, TEST, experiment

CREATED = "2023-11-14 22:13:20+00:00"
BAD_AFTER_S, AFTERWARDS_S = 60, 30
OTHER = "ab_test_0002"


@dataclass
class Arm:
    errors: float = 0.01
    median_ms: float = 300.0


@dataclass
class FactTraffic:
    """Requests of one test as the router's facts, folded a second at a time; `Rollout` takes it for synthetic traffic."""

    test: str = TEST
    share_bp: int = 2000
    per_second: int = 30
    a: Arm = field(default_factory=Arm)
    b: Arm = field(default_factory=Arm)
    worse: Arm = field(default_factory=lambda: Arm(errors=0.15, median_ms=900.0))
    """What the canary becomes after a minute."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.fold = Fold(0, "m", Watermark(CREATED, 0), UnitBook())
        self.sent = 0
        self.published: list[bytes] = []

    def cells(self, second: int) -> list[Cell]:
        if second == BAD_AFTER_S and self.test == TEST:
            self.b = self.worse
        facts = [self._fact() for _ in range(self.per_second)]
        said = [
            Feedback(
                self.test, one.variant, self.share_bp, one.unit, f"{self.sent * 1000 + n:014x}00", START_S + 10**6,
                thumbs_up=bool(self.rng.random() < 0.8),
            )
            for n, one in enumerate(facts) if n % 5 == 0
        ]  # fmt: skip
        self.sent += 1
        clock = {self.test: TestClock(started_ms=START_S * 1000, epoch_seconds=3600)}
        self.fold.fold(FactBatch("r1", 0, self.sent, clock, [], facts, said), self.sent, (START_S + second) * 1000)
        self.published.append(wire.encode_window(self.fold.close()))
        return Window.model_validate_json(self.published[-1]).cells

    def _fact(self) -> Fact:
        variant = "b" if self.rng.random() < self.share_bp / 10_000 else "a"
        arm = self.a if variant == "a" else self.b
        bad = self.rng.random() < arm.errors
        latency = int(1000 * arm.median_ms * np.exp(0.4 * self.rng.standard_normal()))
        outcome = self.rng.choice([Outcome.TIMEOUT, Outcome.ERROR_MID_STREAM]) if bad else self.rng.choice([Outcome.OK, Outcome.LENGTH], p=[0.95, 0.05])
        return Fact(
            self.test, variant, self.share_bp, f"{int(self.rng.integers(1 << 62)):016x}", outcome=Outcome(outcome),
            latency_us=latency, ttft_us=latency // 4, itl_us=latency // 40, prompt_tokens=200, completion_tokens=40,
            cached_tokens=50, cost_nano=400_000, gpu_us=latency // 3, digest=f"sha256:{variant}",
        )  # fmt: skip


def rolled_back(**fields: Any) -> Rollout:
    """A test that was rolled back; its windows, events and findings are in what is returned; ``fields`` of the traffic."""
    story = Rollout(experiment(), FactTraffic(**fields)).run(600)  # type: ignore[arg-type]
    assert story.evaluator.experiment.status == TestStatus.ROLLED_BACK
    story.traffic.share_bp = 0
    for _ in range(AFTERWARDS_S - story.second % 10):  # so that the last step of ten seconds is whole
        story.traffic.cells(story.second)
        story.second += 1
    return story


def _event(ident: str, kind: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"specversion": "1.0", "id": ident, "source": "router", "type": kind, "data": data}).encode()


def _started(test: str, at_s: int, **fields: Any) -> tuple[str, str, dict[str, Any]]:
    data = {
        "test_id": test, "version": 1, "status": "running", "model_a": "stable", "model_b": "canary", "share_bp": 2000,
        "actor": "admin", "config_hash": "sha256:c", "at_ms": at_s * 1000, **fields,
    }  # fmt: skip
    return f"{test}.1.1", "cypria.test.started", data


async def _archive(engine: ClickHouse, shelf: Any, messages: list[bytes], at_ms: int) -> None:
    archive = Archive(None, engine, shelf)  # type: ignore[arg-type]
    archive._life = CREATED
    found = [StreamMessage(n, "s", data, None, at_ms) for n, data in enumerate(messages, 1)]
    await archive._take(CREATED, found)


async def store(engine: ClickHouse, story: Rollout) -> None:
    """Put the story into the tables, and half a story of a second test that goes on."""
    windows, rows, sequence = WindowStore(engine), Rows(), 0
    published, going_on = story.traffic.published, FactTraffic(OTHER, per_second=10)  # type: ignore[attr-defined]
    for second in range(story.second):
        going_on.cells(second)
        for data in (published[second], going_on.published[second]):
            sequence += 1
            rows.add(wire.decode_window(data), sequence, (START_S + second) * 1000)
    await engine.write(lambda client: windows.append(client, CREATED, 0, rows.table(CREATED), sequence, lambda: False))
    end_ms = (START_S + story.second) * 1000
    events = [_event(*_started(TEST, START_S)), _event(*_started(OTHER, START_S + 5))]
    events += [_event(one.id, f"cypria.{one.type}", one.data) for one in story.events]
    await _archive(engine, TESTS, events, end_ms)
    finding = story.evaluator.fired
    assert finding is not None
    raised = alerts.alert_of(story.evaluator.experiment, finding, monitoring_active=True)
    later = Alert(incident="i2", level="WARNING", title="One worker is gone", message="worker w2", at_ms=end_ms)  # type: ignore[arg-type]
    told = [_event(f"a{n}", "cypria.alert", one.model_dump(mode="json")) for n, one in enumerate((raised, later))]
    await _archive(engine, ALERTS, told, end_ms)
    head, links = chain.START, []
    for n, (action, status) in enumerate((("start_test", 200), ("set_split", 403)), 1):
        record = AuditRecord(
            at_ms=START_S * 1000 + n, actor="admin", role="admin", action=action, target=TEST, test_id=TEST, source="h",
            status=status, outcome="done" if status == 200 else "refused", request_id=f"r{n}", needs="operator", changes=True,
        )  # fmt: skip
        data = _event(f"u{n}", "cypria.audit", record.model_dump(mode="json"))
        links.append(chain.link(head, CREATED, n, record.at_ms, chain.record_of(data)))
        head = links[-1].head
    await engine.write(lambda client: AuditStore(engine).add(client, links))
