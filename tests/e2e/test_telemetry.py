"""What a running system tells of itself: `/metrics` by promtool, by the reference, by how many series there are and by a
real Prometheus; traces from the edge to the engine, as a collector gets them; and a collector that dies.
"""

import asyncio
import json
import re
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml

from infra.metrics_reference import SERVICES, described
from services._runtime.nats_server import free_port
from services._runtime.version import version
from tests.e2e.product import Product, bus_caller, running_product
from tests.fakes.collector import Collector
from tests.fakes.openai_server import Behaviour
from tests.harness import eventually
from tests.system import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

FOLDER = ROOT / "infra" / "prometheus"
CLOCK_NS = 1_000_000
"""Moments of the monotonic clock are put on the wall clock one by one, which that may be corrected in between."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def product(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> AsyncIterator[Product]:
    # nothing but what a caller has decided to trace: the ratio of our own is 0
    traces = {"endpoint": collector.endpoint, "sample_ratio": 0}
    async with running_product(tmp_path_factory.mktemp("telemetry"), telemetry={"traces": traces}) as product:
        async with product.test(traffic_split_percent=50):
            for stream in (False, True):
                await product.chat(stream=stream)
        await eventually(lambda: _all_listen(product), every_s=0.2)  # the edge serves before some of them do
        yield product


async def _all_listen(product: Product) -> bool:
    if set(targets(product)) != set(SERVICES):
        return False
    async with httpx.AsyncClient() as client:
        try:
            replies = [await client.get(f"http://{address}/ready") for address in targets(product).values()]
        except httpx.TransportError:
            return False
    return all(reply.status_code == 200 for reply in replies)


def targets(product: Product) -> dict[str, str]:
    """Address of each service's process."""
    told = [json.loads(file.read_text()) for file in (product.system.data_dir / "run").glob("*.json")]
    return {one["service"]: f"127.0.0.1:{one['port']}" for one in told}


async def scraped(product: Product) -> dict[str, str]:
    """Prometheus' text of each service."""
    async with httpx.AsyncClient() as client:
        return {
            service: (await client.get(f"http://{address}/metrics")).text
            for service, address in targets(product).items()
        }


async def test_promtool_finds_nothing_to_say_about_any_services_metrics(product: Product) -> None:
    found = await scraped(product)
    assert set(found) == set(SERVICES)
    for service, text in found.items():
        done = await asyncio.to_thread(
            subprocess.run, ["promtool", "check", "metrics"], input=text.encode(), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, b""), service
    async with httpx.AsyncClient() as client:
        for address in targets(product).values():
            assert (await client.put(f"http://{address}/health")).status_code == 405


async def test_the_reference_has_every_metric_and_no_other(product: Product) -> None:
    shown: dict[str, set[str]] = {}
    for service, text in (await scraped(product)).items():
        for name in re.findall(r"^# TYPE (cypria_\w+)", text, re.MULTILINE):
            assert name.startswith(f"cypria_{service}_"), name
            shown.setdefault(name, set())
        for name, labels in re.findall(r"^(cypria_\w+)\{(.*)\} ", text, re.MULTILINE):
            family = name if name in shown else re.sub("_(bucket|sum|count)$", "", name)
            shown[family] |= set(re.findall(r'(\w+)="', labels)) - {"le"}
        assert f'cypria_{service}_build_info{{version="{version()}"}} 1.0' in text
    reference = {one.name: set(one.labels) for one in described()}
    assert set(shown) == set(reference)
    assert {name: labels for name, labels in shown.items() if labels and labels != reference[name]} == {}


async def test_tests_that_come_and_go_leave_no_series_behind(product: Product) -> None:
    async def series() -> set[str]:
        text = "\n".join((await scraped(product)).values())
        return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith("cypria_")}

    async def a_few(count: int) -> list[str]:
        found = []
        for _ in range(count):
            async with product.test(traffic_split_percent=50) as test_id:
                found.append(test_id)
                for number in range(8):
                    await product.chat(headers={"X-User-ID": f"u{len(found)}.{number}"}, stream=bool(number % 2))
        return found

    await a_few(2)
    before = await series()
    ids = await a_few(6)
    after = await series()
    # a question of the metrics service may have been put for the first time: there is one for each of a few verbs
    assert {name for name in after - before if not name.startswith("cypria_metrics_query_")} == set()
    assert not any(test_id in name for name in after for test_id in ids)
    assert len(after) < 1000


def named(text: str, histogram: str) -> set[str]:
    """The requests that a histogram names, by their ids."""
    return set(re.findall(rf'^{histogram}_bucket.* # \{{request_id="([\w-]+)"\}} [\d.e-]+ [\d.]+$', text, re.MULTILINE))


async def test_openmetrics_names_a_request_of_each_bucket_but_no_callers_own_id(product: Product) -> None:
    asked = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"}
    made = (await product.chat()).headers["x-request-id"]
    await product.chat(headers={"X-Request-ID": "patient-4711"})
    reply = await product.system.client.get("/metrics", headers=asked)
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")
    assert made in named(reply.text, "cypria_router_request_seconds")
    assert "patient-4711" not in reply.text
    ours: set[str] = set()
    async with httpx.AsyncClient(headers=asked) as client:
        for histogram in ("first_token", "output_token", "queue"):

            async def told(histogram: str = histogram) -> bool:  # a bucket names the same request for a second
                ours.add((await product.chat(stream=True)).headers["x-request-id"])
                reply = await client.get(f"http://{targets(product)['inference']}/metrics")
                assert "patient-4711" not in reply.text
                return bool(ours & named(reply.text, f"cypria_inference_{histogram}_seconds"))

            await eventually(told)


def configuration(product: Product) -> dict[str, Any]:
    """infra/prometheus/prometheus.yml with this system's addresses in the place of names, looked at every second."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    job = next(one for one in config["scrape_configs"] if one["job_name"] == "cypria")
    named = {name for one in job.pop("dns_sd_configs") for name in one["names"]}
    found = targets(product)
    assert named == set(found)
    job["static_configs"] = [
        {"targets": [address], "labels": {"__meta_dns_name": service}} for service, address in found.items()
    ]
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER / pattern) for pattern in config["rule_files"]],
        "scrape_configs": [job],
    }


async def test_prometheus_scrapes_all_five_services_and_its_rules_and_exemplars_work(
    product: Product, tmp_path: Path
) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration(product)))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}",
               f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=error"]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        written = [yaml.safe_load(rules.read_text())["groups"] for rules in sorted(FOLDER.glob("*.rules.yml"))]
        expected = sum(len(group["rules"]) for groups in written for group in groups)
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1/") as client:

            async def ask(path: str, **parameters: str | float) -> Any:
                try:
                    return (await client.get(path, params=parameters)).json()["data"]
                except (httpx.TransportError, ValueError, KeyError):  # it is starting
                    assert process.poll() is None, (tmp_path / "log").read_text()
                    return None

            async def up() -> set[str]:
                found = (await ask("query", query="up == 1") or {}).get("result", [])
                return {one["metric"]["service"] for one in found}

            async def named() -> set[str]:
                made.add((await product.chat()).headers["x-request-id"])
                now = time.time()
                found = await ask(
                    "query_exemplars", query="cypria_router_request_seconds_bucket", start=now - 600, end=now + 60
                )
                return {one["labels"]["request_id"] for series in found for one in series["exemplars"]} & made

            async def recorded() -> Any:
                return (await ask("query", query='model:cypria_router_ready_workers:max{model="stable"}'))["result"]

            made: set[str] = set()
            await eventually(lambda: _is(up, set(SERVICES)), 60, 0.2)
            assert [one["value"][1] for one in await eventually(recorded, 60, 0.2)] == ["1"]
            assert await eventually(named, 60, 0.3)

            async def evaluated() -> bool:
                rules = [rule for group in (await ask("rules"))["groups"] for rule in group["rules"]]
                assert {rule.get("lastError") for rule in rules} <= {None, ""}, rules
                return len(rules) == expected and all(rule["health"] == "ok" for rule in rules)

            await eventually(evaluated, 90, 0.5)
            firing = (await ask("query", query='ALERTS{alertstate="firing"}'))["result"]
            assert [one["metric"]["alertname"] for one in firing] == []
    finally:
        process.terminate()
        process.wait(30)


async def _is(read: Any, wanted: Any) -> bool:
    return bool(await read() == wanted)


def caller(*, sampled: bool = True) -> tuple[str, str, str]:
    """(trace id, span id, traceparent) of a caller."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, f"00-{trace}-{span}-{'01' if sampled else '00'}"


async def test_a_callers_trace_goes_on_through_router_and_worker_to_the_engine(
    product: Product, collector: Collector,
) -> None:  # fmt: skip
    for path, stream, model in (("edge", True, "stable"), ("edge", False, "canary"), ("bus", False, "stable")):
        trace, span, traceparent = caller()
        async with product.test(traffic_split_percent=100 if model == "canary" else 0) as test_id:
            if path == "edge":
                reply = await product.chat(stream=stream, headers={"traceparent": traceparent, "X-User-ID": "USERMARK"})
                assert reply.status_code == 200
            else:
                body = {"model": "stable", "messages": [{"role": "user", "content": "PROMPTMARK"}], "user": "USERMARK"}
                async with bus_caller(product.system) as outside:
                    assert await outside.ask("cypria.request.chat", json.dumps(body).encode(), traceparent=traceparent)
        wanted = {
            "cypria-router request", "cypria-router assign", "cypria-router dispatch",
            "cypria-inference chat", "cypria-inference queue", "cypria-inference engine",
        }  # fmt: skip
        await eventually(lambda trace=trace, wanted=wanted: set(collector.of(trace)) == wanted)
        spans = collector.of(trace)
        root, dispatch, work = (spans[name] for name in ("cypria-router request", "cypria-router dispatch", "cypria-inference chat"))
        assert root.parent == span
        assert spans["cypria-router assign"].parent == dispatch.parent == root.id
        assert work.parent == dispatch.id
        engine = spans["cypria-inference engine"]
        assert spans["cypria-inference queue"].parent == engine.parent == work.id
        upstream = getattr(product, model).seen.headers
        assert f"00-{trace}-{engine.id}-01" in [one.get("traceparent") for one in upstream], "who computes can go on with it"
        about = root.attributes
        assert about["cypria.test_id"] == test_id
        assert about["cypria.variant"] == ("b" if model == "canary" else "a")
        assert (about["gen_ai.operation.name"], about["gen_ai.request.model"]) == ("chat", "stable")
        assert (about["gen_ai.response.model"], about["cypria.outcome"]) == (model, "length")
        assert about["http.response.status_code"] == 200
        assert work.name == f"chat {model}"
        assert about["gen_ai.usage.output_tokens"] == work.attributes["gen_ai.usage.output_tokens"] > 0
        assert engine.events == (["first_token"] if stream else [])
        by_id = {one.id: one for one in spans.values()}
        for one in spans.values():
            assert one.began_ns <= one.ended_ns
            above = by_id.get(one.parent)
            # Whose process is another one ends when it has told its end, which the other may have heard before.
            if above is not None and above.service == one.service:
                assert above.began_ns <= one.began_ns + CLOCK_NS
                assert one.ended_ns <= above.ended_ns + CLOCK_NS
    sent = b"".join(collector.raw)
    for secret in (b"PROMPTMARK", b"USERMARK", b"SECRETMARK", b"127.0.0.1"):
        assert secret not in sent


async def test_a_failure_is_told_as_one_and_what_nobody_traces_is_not_told_at_all(
    product: Product, collector: Collector,
) -> None:  # fmt: skip
    quiet, _, unsampled = caller(sampled=False)
    before, heads = len(collector.spans), len(product.stable.seen.headers)
    for traceparent in (unsampled, "", "00-nonsense", f"00-{'0' * 32}-{'0' * 16}-01"):
        assert (await product.chat(headers={"traceparent": traceparent})).status_code == 200
    trace, _, traceparent = caller()
    with product.behaving(stable=Behaviour(status=500)):
        assert (await product.chat(headers={"traceparent": traceparent, "X-Request-ID": "OWNMARK"})).status_code == 500
    await eventually(lambda: len(collector.of(trace)) == 6)
    assert len(collector.spans) == before + 6
    assert collector.of(quiet) == {}
    told = [one.get("traceparent", "") for one in product.stable.seen.headers[heads:]]
    assert (told[:4], {one[3:35] for one in told[4:]}) == ([""] * 4, {trace})
    spans = collector.of(trace)
    assert spans["cypria-inference engine"].attributes["error.type"] == spans["cypria-router dispatch"].attributes["error.type"]
    assert spans["cypria-router request"].attributes["error.type"] == "500"
    assert b"OWNMARK" not in b"".join(collector.raw)


async def test_a_collector_that_dies_harms_nothing(product: Product, collector: Collector) -> None:
    await asyncio.to_thread(collector.die)
    for _ in range(20):
        assert (await product.chat(headers={"traceparent": caller()[2]})).status_code == 200
    assert await asyncio.to_thread(product.system.stop) == 0
