"""Control sides on a real nats-server, with a small request path of their own and the other services' answers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import nats
import pytest
from faststream.nats import NatsBroker
from nats.aio.msg import Msg

from schemas import subjects
from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import Decision
from schemas.v1.control import FeedbackCommand
from schemas.v1.events import ActionRequested
from schemas.v1.experiment import Experiment, RollbackOrder, VariantSummary, VerdictRecord
from schemas.v1.inference import Heartbeat
from schemas.v1.query import FinalVerdict, HistoryReply, QueryError, TestReply, TotalsReply, VerdictStatus
from services._runtime.bus import Bus, make_broker
from services._runtime.clock import monotonic, now_ms
from services._runtime.tasks import end
from services.router.adapters.keys import load_keys
from services.router.adapters.loads import Loads
from services.router.adapters.nats_heartbeats import hear_heartbeats
from services.router.adapters.workers import WorkerTable
from services.router.control import Control, build_control
from services.router.domain.capacity import Load
from services.router.ports import ModelInfo
from tests.harness import NatsServer

ROLES = ("client", "viewer", "operator", "admin")
KEYS = {f"KEY_{role.upper()}": f"secret-{role}" for role in ROLES}
SECURITY = {
    "api_keys": [{"name": role, "role": role, "key_env": f"KEY_{role.upper()}"} for role in ROLES],
    "rate_limit": {"control_per_minute": 0},
}


@dataclass
class SmallPath:
    """A request path that serves nobody but remembers what it was told."""

    names: tuple[str, ...] = ("stable", "canary", "other")
    blocked: list[str] = field(default_factory=list)
    flushes: int = 0
    busy: dict[str, int] = field(default_factory=dict)
    said: list[FeedbackCommand] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)
    erased: list[tuple[str, int]] = field(default_factory=list)
    loads: Loads | None = None
    table: WorkerTable | None = None

    def models(self) -> list[ModelInfo]:
        heard = self.table.models() if self.table else []
        return [
            *(ModelInfo(name, "ready", 1, 1, digest=f"sha256:{name}", engine="openai") for name in self.names),
            *(info for info in heard if info.name not in self.names),
        ]

    def beats(self) -> list[Heartbeat]:
        if self.table is not None:
            return self.table.beats()
        return [Heartbeat(name, "w0", "ready", digest=f"sha256:{name}", engine="openai") for name in self.names]

    def connected_for(self) -> float:
        return 60.0

    def block(self, test_id: str) -> None:
        if test_id not in self.blocked:
            self.blocked.append(test_id)

    def effective_share_bp(self, experiment: Experiment) -> int:
        return 0 if experiment.test_id in self.blocked else experiment.share_bp

    def load(self, model: str) -> Load:
        return Load(workers=1, capacity=8, running=0.0, peak=0.0) if self.loads is None else self.loads.load(model, monotonic())

    def in_flight(self, _test_id: str) -> dict[str, int]:
        return self.busy

    async def flush_facts(self, _timeout_s: float) -> dict[str, dict[int, int]]:
        self.flushes += 1
        return {"r1-1": {0: 7}}

    async def advance_facts(self, partition: int, _timeout_s: float) -> bool:
        self.advanced.append(partition)
        return True

    def erase(self, test_id: str, unit: int) -> None:
        self.erased.append((test_id, unit))

    async def feedback(self, said: FeedbackCommand) -> str:
        self.said.append(said)
        return "ab_test_1"

    def degraded(self) -> list[str]:
        return []


@dataclass
class Side:
    """One router's control side and a client for its HTTP app."""

    control: Control
    path: SmallPath
    bus: Bus
    broker: NatsBroker
    http: httpx.AsyncClient

    async def call(self, method: str, path: str, role: str | None = "admin", **options: Any) -> httpx.Response:
        headers = {**({"Authorization": f"Bearer secret-{role}"} if role else {}), **options.pop("headers", {})}
        return await self.http.request(method, f"/v1/ab-testing{path}", headers=headers, **options)

    async def get(self, path: str, **options: Any) -> Any:
        reply = await self.call("GET", path, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        reply = await self.call("POST", path, json=body, **options)
        assert reply.status_code == 200, reply.text
        return reply.json()

    async def start_test(self, **fields: Any) -> str:
        body = {"model_a": "stable", "model_b": "canary", **fields}
        return (await self.post("/start", body))["test_id"]


class WallClock:
    """The wall clock of every control side from now on, which can be put on: ``ahead_ms`` milliseconds."""

    READERS = ("control.lifecycle", "control.handlers", "control.keys", "adapters.nats_experiments", "adapters.nats_keys", "adapters.nats_outbox")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_ms = 0
        for reader in self.READERS:
            monkeypatch.setattr(f"services.router.{reader}.now_ms", self.now_ms)

    def now_ms(self) -> int:
        return now_ms() + self.ahead_ms


@contextlib.asynccontextmanager
async def side(
    server: NatsServer, *, step_s: float = 10.0, slot_s: float | None = None, names: tuple[str, ...] | None = None,
    forget_s: float = 600.0, answer_s: float = 20.0, **sections: Any,
) -> AsyncIterator[Side]:  # fmt: skip
    """It waits ``answer_s`` for each answer of the bus, however slow the machine is; for 2 s where the bus is to be away.

    With ``slot_s`` it hears workers' heartbeats and takes loads from them, as means over so many seconds.

    ``names``: models that it takes for ready without having heard of them.
    """
    settings = server.settings("router", **{"security": SECURITY, **sections})
    bus = Bus(settings, "router")
    await bus.connect()
    bus.js._timeout = answer_s
    broker = make_broker(settings, "router")
    ring = load_keys(settings.security.api_keys, KEYS)
    control = build_control(settings, bus, ring, root_salt=b"pepper", step_s=step_s, forget_s=forget_s)
    path = SmallPath() if names is None else SmallPath(names)
    listening = None
    if slot_s is not None:
        path.table = WorkerTable([model.name for model in settings.models])
        path.loads = Loads(path.table, slot_s)
        control.models.on_change(path.table.wanted)
        listening = asyncio.create_task(_listen(bus, path.table, path.loads))
    control.attach(path)
    control.subscribe(broker)
    await control.start()
    await broker.start()
    transport = httpx.ASGITransport(control.app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://router", timeout=60)
    try:
        yield Side(control, path, bus, broker, http)
    finally:
        await end(listening)
        await http.aclose()
        await broker.stop()
        await control.stop()
        await bus.close()


async def _listen(bus: Bus, table: WorkerTable, loads: Loads) -> None:
    """What the request path does about workers: hear them, drop the silent ones, look at their load."""
    await hear_heartbeats(bus, lambda beat: table.heard(beat, monotonic()))
    while True:
        table.sweep(monotonic())
        loads.sample(monotonic())
        await asyncio.sleep(0.05)


async def act(server: NatsServer, test: Experiment, action: str, *, payload: bytes | None = None) -> None:
    """The monitor's word on a test as it stands in ``test``."""
    nc = await server.connect("monitor")
    order = RollbackOrder(rule="rule", reason="decided", actor="monitor", at_ms=5, decided_on=test.version)
    asked = ActionRequested(test_id=test.test_id, model_a=test.model_a, action=action, order=order)
    event_id = f"{test.test_id}.{test.version}.{action}"
    body = payload if payload is not None else dump(envelope("verdict.action", event_id, "monitor", 5, asked))
    await nc.jetstream().publish(subjects.event("verdict.action"), body, headers={"Nats-Msg-Id": event_id})
    await nc.close()


class Others:
    """What metrics, monitor and alerts would answer; as their own NATS users."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.asked: list[tuple[str, Any]] = []
        self._clients: list[nats.NATS] = []

    async def open(self, server: NatsServer, *patterns: tuple[str, str]) -> None:
        for user, pattern in patterns:
            nc = await server.connect(user)
            await nc.subscribe(pattern, cb=self._answer)
            await nc.flush()
            self._clients.append(nc)

    async def _answer(self, msg: Msg) -> None:
        question = json.loads(msg.data)
        self.asked.append((msg.subject, question))
        make = self.answers.get(msg.subject)
        answer = make(question) if make else QueryError(message="not prepared")
        if answer is None:
            return
        headers = {"Cypria-Error": "1"} if isinstance(answer, QueryError) else None
        await msg._client.publish(msg.reply, answer.model_dump_json().encode(), headers=headers)

    async def close(self) -> None:
        for nc in self._clients:
            await nc.close()


def totals(requests_b: int = 40) -> Callable[[Any], TotalsReply]:
    summary = {"a": VariantSummary(request_count=60), "b": VariantSummary(request_count=requests_b, error_rate=2.5)}
    return lambda question: TotalsReply(tests=dict.fromkeys(question["tests"], summary))


def final(decision: Decision = Decision.PROMOTE_B) -> Callable[[Any], FinalVerdict]:
    def answer(_question: Any) -> FinalVerdict:
        verdict = VerdictRecord(decision=decision, reason="B is 8 % faster", rule="promotion", at_ms=1, n_a=60, n_b=40)
        return FinalVerdict(verdict=verdict, metrics_summary={"a": VariantSummary(request_count=60)})

    return answer


@contextlib.asynccontextmanager
async def others(server: NatsServer, *, monitor: bool = True) -> AsyncIterator[Others]:
    """Everybody there: totals of 60 and 40 requests, an empty history, a verdict for B."""
    these = Others()
    these.answers = {
        subjects.query("totals"): totals(),
        subjects.query("history"): lambda _q: HistoryReply(),
        subjects.query("test"): lambda _q: TestReply(),
        subjects.verdict("status"): lambda q: VerdictStatus(test_id=q["test_id"], n_b=40, summary="holds"),
        subjects.verdict("final"): final(),
    }
    patterns = [("metrics", subjects.QUERY), ("alerts", subjects.query("alerts"))]
    if monitor:
        patterns.append(("monitor", subjects.VERDICT))
    await these.open(server, *patterns)
    try:
        yield these
    finally:
        await these.close()


async def stream_messages(server: NatsServer, user: str, stream: str, subject: str) -> list[Msg]:
    """Everything that a stream holds under a subject, read with an ephemeral consumer."""
    nc = await server.connect(user)
    try:
        js = nc.jetstream(timeout=30)
        subscription = await js.subscribe(subject, stream=stream, ordered_consumer=True)
        found: list[Msg] = []
        info = await subscription.consumer_info()
        held = info.num_pending + info.delivered.consumer_seq
        while len(found) < held:
            found.append(await subscription.next_msg(timeout=30))
        return found
    finally:
        await nc.close()
