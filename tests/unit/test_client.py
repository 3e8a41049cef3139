"""The Python client against a server that says what it is told to: what is sent, what is repeated, what is raised."""

import asyncio
import inspect
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import cypria
from cypria import _asynchronous, _blocking
from cypria._operation import PREFIX, Operation
from cypria._operations import Operations
from cypria._patience import Outage, Watch
from cypria.types import ENDED, Status
from schemas.v1.common import LIVE, TestStatus
from services.router.control.http import build_app
from tests.certificates import CLIENT, Authority
from tests.fakes.edge import Edge, refusal

NOTHING: Any = None
QUICK = cypria.Retry(first_s=0.001)
TEST = {"test_id": "t1", "status": "rolled_back", "decision": "rollback", "reason": "too slow", "later": {"is": "let pass"},
        "metrics_summary": {"variant_b": {"request_count": 7, "brand_new": 1}}, "verdict": {"decision": "rollback", "rule": "latency"}}  # fmt: skip
STARTED = {"test_id": "t1", "status": "started"}


@pytest.fixture(scope="module")
def server() -> Iterator[Edge]:
    edge = Edge()
    yield edge
    edge.close()


@pytest.fixture(params=["sync", "async"])
async def ask(request: pytest.FixtureRequest, server: Edge) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Calls a method by name, of the one client or the other; what it iterates over comes as a list."""
    if request.param == "sync":
        blocking = cypria.Client(server.url, api_key="k", retry=QUICK)

        async def call(name: str, *args: Any, take: int = -1, **fields: Any) -> Any:
            def whole() -> Any:
                found = getattr(blocking, name)(*args, **fields)
                if not inspect.isgenerator(found):
                    return found
                taken = []
                while len(taken) != take and (one := next(found, NOTHING)) is not NOTHING:
                    taken.append(one)
                found.close()
                return taken

            return await asyncio.to_thread(whole)

        yield call
        return
    async with cypria.AsyncClient(server.url, api_key="k", retry=QUICK) as client:

        async def acall(name: str, *args: Any, take: int = -1, **fields: Any) -> Any:
            found = getattr(client, name)(*args, **fields)
            if not inspect.isasyncgen(found):
                return await found
            taken: list[Any] = []
            while len(taken) != take and (one := await anext(found, NOTHING)) is not NOTHING:
                taken.append(one)
            await found.aclose()
            return taken

        yield acall


def test_every_endpoint_has_a_method_with_all_of_its_fields() -> None:
    document = build_app(NOTHING, NOTHING, NOTHING, 1).openapi()
    documented = {
        (method.upper(), path.removeprefix(PREFIX)): operation
        for path, methods in document["paths"].items()
        if path.startswith(PREFIX) or path == "/ready"
        for method, operation in methods.items()
    }
    methods = {name: one for name, one in vars(Operations).items() if isinstance(one, Operation)}
    offered = {("GET", "/events"): set(inspect.signature(_blocking.Client.events).parameters)}
    for one in methods.values():
        offered.setdefault((one.method, one.path), set()).update(inspect.signature(one.__wrapped__).parameters)
    assert set(documented) == set(offered)
    later = {"variants", "shadow", "baseline_percent"}  # refused by the edge so far
    for endpoint, operation in documented.items():
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        names = {one["name"] for one in operation.get("parameters", [])} | set(body.get("properties", {})) - later
        if endpoint == ("POST", "/models"):  # an entry of the configuration, as it is there
            names = {"replace", "strategy"}
        assert names <= offered[endpoint], endpoint


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def own(kind: type) -> dict[str, Any]:
        return {name: list(inspect.signature(one).parameters.values()) for name, one in vars(kind).items()
                if inspect.isfunction(one) and not name.startswith("_") and name not in {"close", "aclose"}}  # fmt: skip

    assert own(_blocking.Client) == own(_asynchronous.AsyncClient)
    assert {"events", "follow", "history", "report", "running", "wait_for_verdict"} <= set(own(_blocking.Client))


def test_the_client_knows_which_states_are_ends() -> None:
    assert {one.value for one in TestStatus if one not in LIVE} == ENDED


def test_the_client_alone_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from cypria import Client, Retry, Verdict; Client('http://127.0.0.1:9').url"
    root = Path(cypria.__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(root)], check=True, cwd=tmp_path)


async def test_what_is_sent_is_what_was_given(server: Edge, ask: Any) -> None:
    server.answer((200, STARTED))
    at = datetime(2030, 1, 2, 3, tzinfo=UTC)
    started = await ask("start", "a", "b", ramp=(1, 5), primary_metric="ttft", tags={"commit": "c"}, schedule=at,
                        success_criteria={"min_sample_size": 5}, auto_rollback=False)  # fmt: skip
    assert (started.test_id, started.raw) == ("t1", STARTED)
    assert server.seen == [("POST", "/v1/ab-testing/start", {
        "model_a": "a", "model_b": "b", "ramp": [1, 5], "primary_metric": "ttft", "tags": {"commit": "c"},
        "schedule": "2030-01-02T03:00:00+00:00", "success_criteria": {"min_sample_size": 5}, "auto_rollback": False})]  # fmt: skip
    assert server.headers[-1]["Authorization"] == "Bearer k"
    server.answer((200, {"model": "m", "status": "loading"}))
    await ask("load_model", "org/ü m", reload=True)
    await ask("remove_model", "org/m")
    await ask("register_model", {"name": "m", "engine": "openai"}, replace=True)
    assert server.seen == [("POST", "/v1/ab-testing/models/org/%C3%BC%20m/load", {"reload": True}),
                           ("DELETE", "/v1/ab-testing/models/org/m", None),
                           ("POST", "/v1/ab-testing/models", {"name": "m", "engine": "openai", "replace": True})]  # fmt: skip
    server.answer((200, {"records": []}))
    assert (await ask("audit", since="2030-01-02T03:00:00+00:00", actor="ä&b", limit=5)).more is False
    assert server.seen[0][1] == "/v1/ab-testing/audit?since=2030-01-02T03%3A00%3A00%2B00%3A00&actor=%C3%A4%26b&limit=5"
    server.answer((200, {"error": "x"}))
    with pytest.raises(cypria.SettingsError, match="schedule is a time without an offset"):
        await ask("start", "a", "b", schedule=datetime(2030, 1, 2))
    with pytest.raises(TypeError, match="modle_b"):
        await ask("start", "a", "b", modle_b="c")
    assert server.seen == []


async def test_answers_of_a_later_version_are_taken_and_those_of_no_edge_are_not(server: Edge, ask: Any) -> None:
    server.answer((200, TEST))
    test = await ask("test", "t1")
    assert (test.decision, test.verdict.rule, test.metrics_summary["variant_b"].request_count) == ("rollback", "latency", 7)
    assert test.raw["later"] == {"is": "let pass"}
    for answer, words in (((200, {}), "has no 'test_id'"), ((200, "<html>", {"Content-Type": "text/html"}), "not as Cypria does"),
                          ((200, {**TEST, "metrics_summary": [1]}), "has no 'metrics_summary'"),
                          ((302, "", {"Location": "http://127.0.0.1:9/"}), "not as Cypria does")):  # fmt: skip
        server.answer(answer)
        with pytest.raises(cypria.UnexpectedAnswer, match=words):
            await ask("test", "t1")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, cypria.InvalidRequest), (401, cypria.Unauthenticated), (403, cypria.PermissionDenied), (404, cypria.NotFound),
     (409, cypria.Conflict), (410, cypria.Gone), (422, cypria.InvalidRequest), (429, cypria.RateLimited),
     (500, cypria.ServerUnavailable), (503, cypria.ServerUnavailable)],
)  # fmt: skip
async def test_each_refusal_has_its_class_and_the_edges_own_words(server: Edge, ask: Any, status: int, kind: type) -> None:
    server.answer((status, refusal("do this instead", "model_b", "why"), {"X-Request-ID": "r1", "Retry-After": "99"}))
    with pytest.raises(cypria.ApiError) as raised:
        await ask("start", "a", "b")
    error = raised.value
    assert type(error) is kind
    assert (str(error), error.status, error.param, error.code, error.request_id) == ("do this instead", status, "model_b", "why", "r1")
    assert (error.retry_after, len(server.seen)) == (99, 1)  # longer than it waits by itself


async def test_only_what_is_safe_is_repeated(server: Edge, ask: Any) -> None:
    busy, soon = (503, refusal("busy")), {"Retry-After": "0"}
    again = (503, refusal("later"), {"Retry-After": "1"})
    for name, args, first, times in (
        ("test", ("t1",), busy, 2),  # a question
        ("test", ("t1",), (502, "bad gateway", {"Content-Type": "text/plain"}), 2),
        ("test", ("t1",), b"", 2),  # cut off
        ("test", ("t1",), (500, refusal("broken")), 1),
        ("stop", ("t1",), again, 2),  # the edge says when
        ("stop", (), again, 1),  # by then another test may be the running one
        ("stop", ("t1",), busy, 1),  # nobody knows what became of it
        ("stop", ("t1",), b"", 1),
        ("stop", ("t1",), (429, refusal("slow down"), soon), 2),
        ("stop", ("t1",), (404, refusal("none")), 1),
    ):
        server.answer(first, (200, TEST))
        if times == 2:
            assert (await ask(name, *args)).test_id == "t1"
        else:
            with pytest.raises(cypria.CypriaError):
                await ask(name, *args)
        assert len(server.seen) == times, (name, args, first)
    server.answer(busy)
    with pytest.raises(cypria.ServerUnavailable):
        await ask("test", "t1")
    assert len(server.seen) == QUICK.attempts


async def test_a_command_whose_fate_is_unknown_says_so(server: Edge, ask: Any) -> None:
    server.answer(b"")
    with pytest.raises(cypria.ConnectionFailed, match="may have been carried out: look") as raised:
        await ask("start", "a", "b")
    assert raised.value.sent


def test_nothing_listens_and_nothing_answers_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = cypria.Client(f"http://127.0.0.1:{silent.getsockname()[1]}", api_key="k", timeout=0.05)
        with pytest.raises(cypria.NoAnswerInTime, match=r"within 0\.05 s: it may have been carried out"):
            client.stop("t1")
        address = client.url
    with pytest.raises(cypria.ConnectionFailed, match="Connection refused") as raised:
        cypria.Client(address, api_key="k", retry=QUICK).stop("t1")
    assert not raised.value.sent
    assert "k" not in repr(cypria.Client(address, api_key="secret-k"))[7:].replace(address, "")


def test_settings_come_from_arguments_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "API_KEY", "API_KEY_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE"):
        monkeypatch.delenv(f"CYPRIA_{name}", raising=False)
    assert cypria.Client().url == "http://127.0.0.1:2242"
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("CYPRIA_URL", "http://edge.example:1/")
    monkeypatch.setenv("CYPRIA_API_KEY_FILE", str(tmp_path / "key"))
    client = cypria.Client()
    assert (client.url, client._settings.key) == ("http://edge.example:1", "from-file")
    monkeypatch.setenv("CYPRIA_API_KEY", "too")
    for fields, words in (
        ({}, "CYPRIA_API_KEY and CYPRIA_API_KEY_FILE are both set"), ({"url": "edge:1"}, "is 'edge:1': give an address"),
        ({"url": "http://me:word@edge:1"}, "holds a user or password"), ({"url": "http://a..b"}, "is 'http://a..b': give an address"),
        ({"api_key": "a\nb"}, "api_key is no key"), ({"api_key": "k", "cert_file": "c"}, "go together"),
        ({"api_key": "k", "url": "https://x", "ca_file": tmp_path / "none"}, "ca_file .* cannot be used"),
        ({"api_key": "k", "url": "https://x", "ca_file": tmp_path / "key"}, "ca_file .* cannot be used"),
        ({"api_key": "k", "url": "https://x", "cert_file": tmp_path / "key", "key_file": tmp_path / "key"}, "PEM files of one"),
    ):  # fmt: skip
        with pytest.raises(cypria.SettingsError, match=words):
            cypria.Client(**fields)  # type: ignore[arg-type]


def status(state: str = "running", **fields: Any) -> dict[str, Any]:
    return {"test_id": "t1", "status": state, "effective_split_percent": 10, "metrics": {"variant_a": {}, "variant_b": {}}, **fields}


async def test_waiting_outlasts_an_edge_that_is_away_and_tells_each_change_once(server: Edge, ask: Any) -> None:
    away = [(503, refusal("starting"), {"Retry-After": "0"}), (502, "<html>", {"Content-Type": "text/html"}), b""]
    grown = status(metrics={"variant_b": {"request_count": 5, "error_rate": 40}})
    server.answer((200, status()), (200, grown), *away, (200, status(effective_split_percent=0)), (200, status("rolled_back")), b"", (200, TEST))
    told: list[str] = []
    verdict = await ask("wait_for_verdict", "t1", 60, on_progress=lambda seen: told.append(str(seen)), poll=0.001)
    assert (verdict.decision, verdict.promoted, verdict.reason, verdict.rule) == ("rollback", False, "too slow", "latency")
    assert [line.split(";")[:2] for line in told[:2]] == [["t1 running", " split 10 %"], ["t1 running", " split 0 %"]]
    assert len(told) == 3
    assert len(server.seen) == 9


async def test_waiting_ends_with_its_time_and_with_what_no_time_mends(server: Edge, ask: Any) -> None:
    server.answer((200, status()))
    with pytest.raises(cypria.NoVerdictYet, match=r"no verdict on t1 within 0\.02 s: it goes on") as raised:
        await ask("wait_for_verdict", "t1", 0.02, poll=0.01)
    assert (raised.value.test_id, raised.value.status.status) == ("t1", "running")
    for answer, kind in (((404, refusal("no such test")), cypria.NotFound), ((401, refusal("no key")), cypria.Unauthenticated),
                         ((200, {"hello": "world"}), cypria.UnexpectedAnswer), ((200, status(test_id="other")), cypria.NotFound)):  # fmt: skip
        server.answer(answer)
        with pytest.raises(kind):
            await ask("wait_for_verdict", "t1", poll=0.001)
        assert len(server.seen) == 1


def test_patience_with_an_edge_that_is_away_has_an_end() -> None:
    now = [0.0]
    outage = Outage(60, clock=lambda: now[0])
    lost = cypria.ConnectionFailed("gone", sent=False)
    assert outage.of(lost) > 0
    now[0] = 10  # it has never been there
    with pytest.raises(cypria.ConnectionFailed):
        outage.of(lost)
    outage.over()
    assert not outage.noticed
    for now[0] in (20, 50, 79):
        assert 0 < outage.of(lost) <= 5
        assert outage.noticed
    now[0] = 81
    with pytest.raises(cypria.ConnectionFailed):
        outage.of(lost)
    watch = Watch("t1", 10, 2.0, outage, clock=lambda: now[0])
    assert watch.seen(Status(test_id="t1", status="running"))
    now[0] = 90
    assert watch.pause() == 1
    assert watch.verdict(cypria.Test(test_id="t1", status="failed")).decision == "inconclusive"


async def test_history_goes_through_all_pages_and_shows_nothing_twice(server: Edge, ask: Any) -> None:
    def page(*numbers: int) -> tuple[int, Any]:
        return 200, {"tests": [{"test_id": f"t{n}", "status": "completed"} for n in numbers], "total_tests": 151}

    server.answer(page(*range(150, 50, -1)), page(*range(51, 0, -1)))  # one more has ended between the two
    assert [test.test_id for test in await ask("history")] == [f"t{n}" for n in range(150, 0, -1)]
    assert [path.partition("?")[2] for _, path, _ in server.seen] == ["limit=100&offset=0", "limit=100&offset=100"]
    server.answer(page(*range(150, 50, -1)))
    assert len(await ask("history", 3)) == 3
    assert len(server.seen) == 1


async def test_evidence_reports_and_running_tests(server: Edge, ask: Any) -> None:
    server.answer((200, {"test_id": "t1", "last": 5}), (200, {"test_id": "t1", "last": 9, "complete": True}))
    assert [page.last for page in await ask("evidence", "t1")] == [5, 9]
    assert server.seen[1][1].endswith("?after=5")
    server.answer((200, {"test_id": "t1", "result": TEST}))
    assert (await ask("report", "t1")).result.decision == "rollback"
    for form in ("markdown", "html"):
        server.answer((200, "whole", {"Content-Type": f"text/{form}; charset=utf-8"}))
        assert await ask("report", "t1", form) == "whole"
        assert server.headers[-1]["Accept"] == f"text/{form}"
    server.answer((200, {"test_id": None, "status": None}))
    assert await ask("running") == []
    server.answer((200, status(running_tests=["t1", "t2"])), (200, status(test_id="t2")))
    assert [one.test_id for one in await ask("running")] == ["t1", "t2"]


async def test_events_are_taken_up_again_and_say_that_some_were_missed(server: Edge, ask: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: connected\n\n"
    server.answer(
        head + b'event: event\nid: e1\ndata: {"a": 1}\n\nevent: window\ndata: [no object]\n\nevent: alert\nda',
        b"", (503, refusal("starting"), {"Retry-After": "0"}), head + b'event: alert\r\ndata: {"b":\r\ndata: 2}\r\n\r\n',
    )  # fmt: skip
    found = await ask("events", take=3, live=True)
    assert {path for _, path, _ in server.seen} == {"/v1/ab-testing/events?live=true"}
    assert [(one.name, one.id, one.data) for one in found] == [("event", "e1", {"a": 1}), ("reconnected", None, {}), ("alert", None, {"b": 2})]
    for answer, kind in (((401, refusal("no key")), cypria.Unauthenticated), ((200, STARTED), cypria.UnexpectedAnswer)):
        server.answer(answer)
        with pytest.raises(kind):
            await ask("events")


async def test_an_event_may_be_long(server: Edge, ask: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    server.answer(head + b'event: live\ndata: {"a": "' + 300_000 * b"x" + b'"}\n\n')
    (event,) = await ask("events", take=1, live=True)
    assert len(event.data["a"]) == 300_000


async def test_an_edge_over_tls_is_checked_and_shown_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    mine, other = authority.issue("app", purpose=CLIENT), Authority(tmp_path / "other", "other")
    edge = Edge()
    edge.answer((200, TEST))
    serving = authority.issue("edge")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serving.cert, serving.key)
    context.load_verify_locations(cafile=authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    edge.server.socket = context.wrap_socket(edge.server.socket, server_side=True, do_handshake_on_connect=False)
    edge.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    url = edge.url.replace("http:", "https:")
    shown: Any = {"api_key": "k", "cert_file": mine.cert, "key_file": mine.key, "retry": QUICK}
    try:
        assert (await asyncio.to_thread(cypria.Client(url, ca_file=authority.ca, **shown).test, "t1")).test_id == "t1"
        async with cypria.AsyncClient(url, ca_file=authority.ca, **shown) as client:
            assert (await client.test("t1")).test_id == "t1"
        for ca, fields, words in ((other.ca, shown, "certificate is refused .* CYPRIA_CA_FILE must name"),
                                  (authority.ca, {"api_key": "k", "retry": QUICK}, "no answer from")):  # fmt: skip
            with pytest.raises(cypria.ConnectionFailed, match=words):
                await asyncio.to_thread(cypria.Client(url, ca_file=ca, **fields).stop, "t1")
            async with cypria.AsyncClient(url, ca_file=ca, **fields) as client:
                with pytest.raises(cypria.ConnectionFailed, match=words):
                    await client.stop("t1")
        assert len(edge.seen) == 2
        with pytest.raises(cypria.ConnectionFailed, match="CYPRIA_URL begins with https://"):
            await asyncio.to_thread(cypria.Client(edge.url, api_key="k", retry=QUICK).test, "t1")
    finally:
        edge.close()


async def test_what_a_system_that_is_not_ready_lacks_is_told(server: Edge, ask: Any) -> None:
    server.answer((503, {"status": "starting", "service": "router", "missing": {"bus": "not connected"}}))
    with pytest.raises(cypria.ServerUnavailable, match="not ready yet: bus: not connected"):
        await ask("ready")
    assert server.seen[0][1] == "/ready"
