"""What `integrations` takes, what integrations are told of which event, and how figures are summed into windows."""

import asyncio
import datetime as dt
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.v1.cloudevent import dump, envelope
from schemas.v1.common import Decision, Outcome, TestStatus
from schemas.v1.events import TestEvent
from schemas.v1.experiment import RollbackOrder, TestResult, VariantSummary, VerdictRecord
from schemas.v1.integrations import CALLS, Decided, GiveUp, MetricWindow, RolledBack, Started, Subscriber
from schemas.v1.windows import Cell, Moments
from services._runtime.settings import ConfigError
from services._runtime.settings_integrations import KEYS
from services._runtime.settings_model import Settings
from services.alerts.adapters import subscriber
from services.alerts.domain import dtesn
from services.alerts.domain.backoff import RetryPolicy
from services.alerts.domain.occasions import occasions
from services.alerts.domain.outcome import Outcome as Delivery
from services.alerts.domain.outcome import Refused, Retry, Sent
from services.alerts.domain.record import DeliveryRecord
from services.alerts.domain.windows import WindowFold, metric_window
from services.alerts.integrating import Calling
from services.alerts.ports import Incoming, Told
from services.alerts.settings import Link, read
from services.alerts.subscribers.host import calls_of
from services.router.control.config_view import masked
from tests.service.alerts.occasions import package

ROOT = Path(__file__).resolve().parents[3]
GOOD: dict[str, dict[str, Any]] = {
    "dtesn": {"url": "http://aphrodite:2242"},
    "webhook": {"url": "https://h/x", "secret": "s"},
    "subscriber": {"entry_point": "aar"},
}


def links(*integrations: dict[str, Any], environ: dict[str, str] | None = None, **sections: Any) -> tuple[Link, ...]:
    return read(Settings.model_validate({"integrations": list(integrations), **sections}), environ or {}).links


def test_off_by_default() -> None:
    assert links() == ()


@pytest.mark.parametrize("kind", GOOD)
def test_each_type_is_taken_and_a_key_of_another_one_is_refused(kind: str) -> None:
    (link,) = links({"type": kind, **GOOD[kind]})
    assert link.name == GOOD[kind].get("entry_point", kind)
    foreign: dict[str, Any] = {"model_names": {"a": "b"}, "secret_env": "X", "options": {"a": 1}, "events": ["decided"]}
    refused = [key for key in foreign if key not in KEYS[kind]]
    assert refused
    for key in refused:
        with pytest.raises(ValueError, match=f"'{key}' is no setting of an integration of type {kind}"):
            links({"type": kind, **GOOD[kind], key: foreign[key]})


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"type": "dtesn"}, "needs url"), ({"type": "webhook", "url": "http://h"}, "needs secret_env"),
     ({"type": "subscriber"}, "needs entry_point"), ({"type": "nats"}, "type"),
     ({"type": "webhook", "url": "http://h", "secret": "s", "events": []}, "empty list"),
     ({"type": "webhook", "url": "http://h", "secret": "s", "events": ["Test Started"]}, "is no event"),
     ({"type": "subscriber", "entry_point": "aar", "events": ["finished"]}, "no call of a subscriber"),
     ({"type": "subscriber", "entry_point": "aar", "options": {"since": dt.date(2026, 1, 1)}}, "a date needs quotes"),
     ({"type": "dtesn", "url": "http://h", "url_env": "X"}, "not both"),
     ({"type": "dtesn", "url": "http://h", "timeout_seconds": 0}, "greater than 0")],
)  # fmt: skip
def test_what_is_doubtful_is_refused_with_the_reason(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        links(entry)


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"type": "dtesn", "url_env": "NOWHERE"}, r"integrations\.0\.url_env: the environment variable NOWHERE is not set"),
     ({"type": "dtesn", "url": "aphrodite:2242"}, r"integrations\.0\.url: the URL must start with"),
     ({"type": "subscriber", "entry_point": "aar", "environment": ["NOWHERE"]}, "NOWHERE is not set")],
)  # fmt: skip
def test_what_the_environment_lacks_is_named(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        links(entry)


def test_names_are_unique_and_made_where_none_is_given() -> None:
    named = links({"type": "dtesn", **GOOD["dtesn"]}, {"type": "dtesn", **GOOD["dtesn"]})
    assert [link.name for link in named] == ["dtesn", "dtesn-2"]
    with pytest.raises(ConfigError, match="two integrations are named 'x'"):
        links({"type": "dtesn", "name": "x", **GOOD["dtesn"]}, {"type": "webhook", "name": "x", **GOOD["webhook"]})


def test_secrets_come_from_the_environment_and_are_masked() -> None:
    entry = {"type": "dtesn", "url": "http://u:hidden@h", "token_env": "DTESN_TOKEN"}
    (link,) = links(entry, environ={"DTESN_TOKEN": "hidden-too"})
    assert link.secrets == {"url": "http://u:hidden@h", "token": "hidden-too"}
    assert "hidden" not in repr(link)
    options = {"type": "subscriber", "entry_point": "aar", "options": {"api_token": "hidden"}}
    assert "hidden" not in str(masked(Settings.model_validate({"integrations": [entry, options]})))


def test_models_go_by_the_servers_names() -> None:
    models = [{"name": "canary", "engine": "openai", "base_url": "http://h/v1", "upstream_model": "org/canary"}]
    (link,) = links({"type": "dtesn", "model_names": {"stable": "org/stable"}, **GOOD["dtesn"]}, models=models)
    assert link.models == {"canary": "org/canary", "stable": "org/stable"}


def test_the_package_declares_the_subscribers_that_it_brings() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["cypria.integrations"]
    assert declared == subscriber.OWN
    assert all(subscriber.entry_of(name) == value for name, value in declared.items())


def test_an_entry_point_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"is named 'nobody': install the package that has it; there are .*aar, echo_self"):
        subscriber.entry_of("nobody")


def test_nobody_takes_the_place_of_another_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path / "packages", "other", "", aar="other:Aar", mine="other:Mine")))
    assert subscriber.entry_of("mine") == "other:Mine"
    with pytest.raises(ConfigError, match=r"two packages have an entry point 'aar' \(other:Aar, services.*\): uninstall one"):
        subscriber.entry_of("aar")


def test_a_subscriber_has_the_methods_that_are_its_own() -> None:
    class Bare:
        def on_decided(self, event: Decided) -> None:
            raise GiveUp

    class Declared(Subscriber):
        async def on_started(self, event: Started) -> None:
            pass

    assert calls_of(Bare()) == ["decided"]
    assert calls_of(Declared()) == ["started"]
    assert calls_of(object()) == []


# ----------------------------------------------------------------------------------------------------------


def an_event(**fields: Any) -> TestEvent:
    return TestEvent(
        **{"test_id": "t1", "version": 3, "status": TestStatus.COMPLETED, "model_a": "stable", "model_b": "canary",
           "share_bp": 1250, "at_ms": 1_000, **fields}
    )  # fmt: skip


def a_verdict(decision: Decision = Decision.PROMOTE_B, metric: str = "latency", value: float = -12.5) -> VerdictRecord:
    return VerdictRecord(
        decision=decision, reason="faster", rule="promotion", at_ms=1, value=value, n_a=900, n_b=100,
        details={"metric": metric},
    )  # fmt: skip


def ended(verdict: VerdictRecord, **fields: Any) -> TestEvent:
    summary = {"a": VariantSummary(request_count=900), "b": VariantSummary(request_count=100)}
    result = TestResult(test_id="t1", status=TestStatus.COMPLETED, decision=verdict.decision, verdict=verdict,
                        reason=verdict.reason, metrics_summary=summary, tags={"team": "x"})  # fmt: skip
    return an_event(result=result, **fields)


def test_a_start_is_told_with_its_split() -> None:
    ((kind, told),) = occasions("test.started", "t1.1.1", an_event(status=TestStatus.RUNNING, actor="ops"))
    assert kind == "started"
    assert isinstance(told, Started)
    assert (told.event_id, told.traffic_split_percent, told.actor) == ("t1.1.1.started", 12.5, "ops")


@pytest.mark.parametrize(
    ("metric", "value", "gain"), [("latency", -12.5, 12.5), ("ttft", 3.0, -3.0), ("thumbs", 8.0, 8.0), ("score", -1.0, -1.0)]
)
def test_the_gain_is_positive_where_b_is_better(metric: str, value: float, gain: float) -> None:
    ((kind, told),) = occasions("test.completed", "e", ended(a_verdict(metric=metric, value=value)))
    assert kind == "decided"
    assert isinstance(told, Decided)
    assert (told.metric, told.performance_gain_percent) == (metric, gain)
    assert (told.decision, told.n_b, told.variants["b"].request_count) == (Decision.PROMOTE_B, 100, 100)
    assert told.tags == {"team": "x"}


def test_a_rollback_is_told_and_then_its_decision() -> None:
    verdict = VerdictRecord(decision=Decision.ROLLBACK, reason="r", rule="critical_error_rate", at_ms=1, value=0.4, n_b=9)
    order = RollbackOrder(rule="critical_error_rate", reason="errors", actor="monitor", at_ms=1, verdict=verdict)
    event = ended(verdict, order=order, status=TestStatus.ROLLED_BACK)
    (first, told), (second, decided) = occasions("test.rolled_back", "e", event)
    assert (first, second) == ("rolled_back", "decided")
    assert isinstance(told, RolledBack)
    assert (told.automatic, told.rule, told.value, told.n_b) == (True, "critical_error_rate", 0.4, 9)
    assert isinstance(decided, Decided)
    assert (decided.decision, decided.performance_gain_percent) == (Decision.ROLLBACK, None)
    by_hand = ended(verdict, order=order.model_copy(update={"actor": "alice", "verdict": None}))
    told_by_hand = occasions("test.rolled_back", "e", by_hand)[0][1]
    assert isinstance(told_by_hand, RolledBack)
    assert not told_by_hand.automatic


@pytest.mark.parametrize("kind", ["test.paused", "test.ramped", "test.split_changed", "test.scheduled", "test.rolling_back"])
def test_other_events_are_no_occasion(kind: str) -> None:
    assert occasions(kind, "e", an_event()) == []


@pytest.mark.parametrize(
    ("told", "todo"),
    [(Decided(event_id="e", test_id="t", model_a="a", model_b="b", at_ms=1, decision="promote_b", status="completed"), ("org/a", "b")),
     (Decided(event_id="e", test_id="t", model_a="a", model_b="b", at_ms=1, decision="keep_a", status="completed"), None),
     (RolledBack(event_id="e", test_id="t", model_a="a", model_b="b", at_ms=1), ("b", None)),
     (Started(event_id="e", test_id="t", model_a="a", model_b="b", at_ms=1), None)],
)  # fmt: skip
def test_dtesn_drops_what_is_replaced_or_taken_out(told: Any, todo: Any) -> None:
    assert dtesn.stale_and_warm(told, {"a": "org/a"}) == todo


@pytest.mark.parametrize(
    ("status", "available", "warmed"),
    [(200, Sent, Sent), (404, Refused, Sent), (503, Retry, Retry), (429, Retry, Retry), (400, Refused, Sent), (500, Retry, Sent)],
)  # fmt: skip
def test_answers_of_dtesn(status: int, available: type[Delivery], warmed: type[Delivery]) -> None:
    outcome = Sent() if status == 200 else Refused("x") if status in {400, 404} else Retry("x")
    assert isinstance(dtesn.available(outcome, status), available)
    assert isinstance(dtesn.warmed(outcome, status), warmed)


# ----------------------------------------------------------------------------------------------------------


def a_cell(test: str = "t1", variant: str = "b", done: int = 4, us: int = 2_000) -> Cell:
    latency = Moments(n=done, total=done * us, bins={400: done})
    return Cell(test=test, variant=variant, share_bp=1000, done=done, outcomes={Outcome.OK: done - 1, Outcome.TIMEOUT: 1},
                latency=latency, cost=Moments(n=1, total=5_000_000_000), completion_tokens=7)  # fmt: skip


def test_a_window_is_closed_by_the_first_message_after_it() -> None:
    fold = WindowFold(10)
    assert fold.add(12_000, [a_cell()]) is None
    assert fold.add(19_999, [a_cell(), a_cell(variant="a"), a_cell(test="t2")]) is None
    closed = fold.add(20_000, [a_cell()])
    assert closed is not None
    assert (closed.begins_s, sorted(closed.tests)) == (10, ["t1", "t2"])
    told = metric_window("t1", closed, 10, ("stable", "canary"))
    assert isinstance(told, MetricWindow)
    assert (told.event_id, told.begins_ms, told.ends_ms, told.model_b) == ("t1.window.10.10", 10_000, 20_000, "canary")
    figures = told.variants["b"]
    assert (figures.requests, figures.errors, figures.error_rate, figures.avg_latency_ms) == (8, 2, 25.0, 2.0)
    assert (figures.cost, figures.completion_tokens) == (10.0, 14)
    small = metric_window("t1", closed, 10, ("stable", "canary"), least=5).variants
    assert small["b"] == figures
    assert (small["a"].requests, small["a"].errors, small["a"].withheld) == (4, 1, True)
    measured = small["a"].model_dump(include={"error_rate", "avg_latency_ms", "latency_p95_ms", "avg_ttft_ms",
                                              "prompt_tokens", "completion_tokens", "cost"})  # fmt: skip
    assert set(measured.values()) == {None}
    after = fold.add(45_000, [])
    assert after is not None
    assert (after.begins_s, list(after.tests)) == (20, ["t1"])
    empty = fold.add(50_000, [])
    assert empty is not None
    assert empty.tests == {}


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 9)), min_size=1, max_size=40), st.integers(1, 30), st.data())
def test_reading_again_from_before_an_open_window_gives_the_same_windows(
    steps: list[tuple[int, int]], seconds: int, data: st.DataObject
) -> None:
    """Whatever the moment of a restart: the position is the last message before the window that was open."""
    time, messages = 0, []
    for step, done in steps:
        time += step * 100
        messages.append((time, done))

    def closed(begin: int, fold: WindowFold) -> list[Any]:
        found = []
        for place in range(begin, len(messages)):
            over = fold.add(messages[place][0], [a_cell(done=messages[place][1])])
            if over is not None:
                found.append((over.begins_s, over.tests["t1"]["b"].done, place))
        return found

    whole = closed(0, WindowFold(seconds))
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        assert closed(whole[at][2], WindowFold(seconds)) == whole[at + 1 :]


def test_every_call_has_a_method() -> None:
    assert {f"on_{kind}" for kind in CALLS} == {name for name in vars(Subscriber) if name.startswith("on_")}


class Slow:
    """An integration that has been told something when it is let go."""

    name = "slow"

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gate = asyncio.Event()

    def wants(self, told: Told) -> bool:
        return True

    async def tell(self, told: Told) -> Delivery:
        self.told.append(told.event_id)
        await self.gate.wait()
        return Sent()


class Memory:
    """Ledger and standings of one process."""

    def __init__(self) -> None:
        self.records: dict[str, DeliveryRecord] = {}

    async def delivery(self, _destination: str, event_id: str) -> DeliveryRecord | None:
        return self.records.get(event_id)

    async def record(self, record: DeliveryRecord) -> None:
        self.records[record.event_id] = record

    async def note(self, name: str, **fields: Any) -> None:
        pass

    async def beginning(self, _name: str) -> int:
        return 0


async def test_a_message_that_comes_again_while_it_is_in_hand_is_not_told_twice() -> None:
    slow, memory = Slow(), Memory()
    calling: Any = Calling(slow, memory, None, RetryPolicy(), memory)  # type: ignore[arg-type]
    ((kind, occasion),) = occasions("test.started", "e", an_event())
    payload = dump(envelope(f"integration.{kind}", occasion.event_id, "alerts", 1, occasion))
    incoming = Incoming(payload, "cypria.integration.event.started", 7, 1)
    first = asyncio.create_task(calling.handle(incoming))
    while not slow.told:
        await asyncio.sleep(0)
    again = Incoming(payload, incoming.subject, 7, 2)
    assert (await calling.handle(again)) >= 5, "it comes again when the first is over"
    slow.gate.set()
    assert await first is None
    assert await calling.handle(again) is None
    assert slow.told == ["e.started"]
