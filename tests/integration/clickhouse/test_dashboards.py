"""Grafana's dashboards on the real engine, asked as its data source asks: over HTTP, with the macros expanded."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import clickhouse_connect
import pytest
import yaml

from schemas.v1.common import ERRORS
from schemas.v1.windows import Window
from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_http import Front
from tests.integration.clickhouse.dashboards import (
    CLICKHOUSE,
    PROMETHEUS,
    Asked,
    Range,
    boards,
    expanded,
    exported,
    metrics,
    panels,
    questions,
)
from tests.integration.clickhouse.stories import OTHER, rolled_back, store
from tests.pictures.grafana import page
from tests.system import ROOT
from tests.unit.monitor.rollout import Rollout
from tests.unit.monitor.synthetic import START_S, TEST

ASKED = [asked for board in boards() for asked in questions(board)]
CHOSEN = {"test": [TEST], "model": []}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ClickHouse, Rollout]]:
    engine, made = ClickHouse(f"chdb://{tmp_path_factory.mktemp('story') / 'chdb'}"), rolled_back()

    async def fill() -> None:
        await engine.open()
        await engine.write(lambda client: engine.migrate(client, 10_000, 5))
        await store(engine, made)

    asyncio.run(fill())
    yield engine, made
    engine.close()


@pytest.fixture
async def client(story: tuple[ClickHouse, Rollout]) -> AsyncIterator[Any]:
    front = Front(story[0].path, "cypria", "cypria", "secret")
    port = await front.start("127.0.0.1", 0)
    options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "username": "cypria", "password": "secret", "database": "cypria"}
    client = await asyncio.to_thread(clickhouse_connect.get_client, **options)
    yield client
    client.close()
    await front.stop()


async def rows(client: Any, sql: str) -> list[dict[str, Any]]:
    found = await asyncio.to_thread(client.query, sql)
    return list(found.named_results())


async def test_every_panel_annotation_and_variable_has_something_to_show(client: Any, story: tuple[ClickHouse, Rollout]) -> None:
    end = START_S + story[1].second
    for asked in (one for one in ASKED if one.uid == CLICKHOUSE):
        found = await rows(client, expanded(asked, Range(START_S - 60, end + 60), CHOSEN))
        assert found, f"{asked} shows nothing"
        empty = {name for name in found[0] if all(row[name] is None for row in found)}
        assert not empty, f"{asked}: nothing in {empty}"
    for asked in (one for one in ASKED if "conditionalAll" in one.text):
        chosen = await rows(client, expanded(asked, Range(START_S, end), {"model": ["canary", "it's"]}))
        assert {row["model"] for row in chosen} == {"canary"}


async def test_what_the_panels_show_is_what_happened(client: Any, story: tuple[ClickHouse, Rollout]) -> None:
    span = Range(START_S - 60, START_S + story[1].second + 60)

    async def shown(where: str, test: str = TEST) -> list[dict[str, Any]]:
        [asked] = [one for one in ASKED if str(one) == where]
        return await rows(client, expanded(asked, span, {"test": [test], "model": []}))

    cells = [cell for data in story[1].traffic.published for cell in Window.model_validate_json(data).cells if cell.variant == "b"]  # type: ignore[attr-defined]
    errors = sum(n for cell in cells for outcome, n in cell.outcomes.items() if outcome in ERRORS)
    [state] = await shown("cypria-test / State")
    assert (state["status"], state["decision"], state["canary"]) == ("rolled_back", "rollback", "canary")
    [why] = await shown("cypria-test / Why it ended")
    assert why["ln E"] >= why["ln E needed"] > 0
    assert why["rule"] in why["reason"]
    totals = {row["arm"]: row for row in await shown("cypria-test / Totals")}
    assert totals["canary"]["requests"] == sum(cell.done for cell in cells)
    assert totals["canary"]["errors"] == pytest.approx(100 * errors / totals["canary"]["requests"])
    quantiles = [row for row in await shown("cypria-test / Latency") if row["arm"] == "canary" and row["p50"] is not None]
    assert quantiles[0]["p50"] < 450 < 700 < quantiles[-1]["p50"] < quantiles[-1]["p95"], "it became slower"
    kinds = {row["outcome"] for row in await shown("cypria-test / Outcomes of the canary")}
    assert {"ok", "timeout", "error_mid_stream"} <= kinds
    changes = [row["change"] for row in await shown("cypria-test / Changes")]
    assert changes[0] == "started"
    assert changes[-1] == "rolled_back"
    assert await shown("cypria-test / Why it ended", OTHER) == [], "it goes on"
    tests = {row["test"]: row for row in await shown("cypria-fleet / Tests")}
    assert tests[TEST]["errors canary"] == totals["canary"]["errors"]
    assert {name: row["status"] for name, row in tests.items()} == {TEST: "rolled_back", OTHER: "running"}
    effect = (await shown("cypria-test / Effect so far"))[-1]
    assert effect["errors in points"] == pytest.approx(totals["canary"]["errors"] - totals["stable"]["errors"])
    fronts = {row["stream"]: row["sequence"] for row in await shown("cypria-pipeline / How far the tables are")}
    assert fronts == {"WINDOWS": 2 * story[1].second, "EVENTS": 2 + len(story[1].events), "ALERTS": 2, "AUDIT": 2}


async def test_pictures_of_the_dashboards_have_all_panels_over_clickhouse(client: Any, story: tuple[ClickHouse, Rollout]) -> None:
    span = Range(START_S - 10, START_S + story[1].second)
    answers = {str(one): await rows(client, expanded(one, span, CHOSEN)) for one in ASKED if one.uid == CLICKHOUSE}
    for board in boards():
        shown = page(board, answers, span)
        for panel in panels(board):
            ours = panel.get("datasource", {}).get("uid") == CLICKHOUSE
            assert not ours or f"<h3>{panel['title']}</h3>" in shown, panel["title"]
        assert "nan" not in shown


async def test_the_examples_of_the_documentation_answer(client: Any, story: tuple[ClickHouse, Rollout]) -> None:
    examples = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "grafana.md").read_text(), re.DOTALL)
    assert len(examples) >= 5
    span = Range(START_S, START_S + story[1].second)
    for text in examples:
        assert await rows(client, expanded(Asked("docs", "grafana.md", text, CLICKHOUSE), span, {})), text


async def test_figures_of_few_requests_are_withheld_and_their_counts_are_not(client: Any, story: tuple[ClickHouse, Rollout]) -> None:
    """In the steps that they are few in: a longer one has them."""
    every = f"since = toDateTime({START_S}), until = toDateTime({START_S + 600})"
    few = await rows(client, f"SELECT * FROM variant_series({every}, step = 1) WHERE test_id = '{OTHER}' AND variant = 'b' ORDER BY at")
    withheld = [row for row in few if row["withheld"]]
    assert all(row["requests"] < 5 for row in withheld)
    counts = {"at", "test_id", "variant", "share_percent", "withheld", "thumbs_up", "thumbs_down", "scores"}
    for row in withheld:
        figures = {name for name, value in row.items() if isinstance(value, float) and name not in counts}
        assert figures <= {"requests_per_second"}
    [whole] = await rows(client, f"SELECT * FROM variant_series({every}, step = 864000) WHERE test_id = '{OTHER}' AND variant = 'b'")
    [total] = await rows(client, f"SELECT * FROM variant_totals WHERE test_id = '{OTHER}' AND variant = 'b'")
    assert not whole["withheld"]
    assert whole["requests"] == total["requests"] == sum(row["requests"] for row in few)
    for name in set(whole) & set(total):
        assert whole[name] == total[name], name
    engine = story[0]
    told = await engine.write(lambda client: engine.migrate(client, 10_000, 10**6))
    assert {"variant_series", "variant_totals", "model_series", "outcome_totals"} <= set(re.findall(r"view (\w+):", " ".join(told)))
    [none] = await rows(client, f"SELECT * FROM variant_series({every}, step = 864000) WHERE test_id = '{OTHER}' AND variant = 'b'")
    assert none["withheld"]
    assert none["requests"] == whole["requests"]
    assert none["latency_p95_ms"] is None
    await engine.write(lambda client: engine.migrate(client, 10_000, 5))


def test_every_board_is_whole() -> None:
    for board in boards():
        assert board["schemaVersion"] >= 36
        assert re.fullmatch(r"cypria-[a-z]+", board["uid"])
        names = [panel["title"] for panel in panels(board)]
        assert len(set(names)) == len(names)
        assert len({panel["id"] for panel in panels(board)}) == len(names)
        taken: set[tuple[int, int]] = set()
        for panel in panels(board):
            at = panel["gridPos"]
            place = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not place & taken, f"{board['uid']}: {panel['title']} lies over another panel"
            assert at["x"] + at["w"] <= 24
            taken |= place
        known = {variable["name"] for variable in board.get("templating", {}).get("list", [])}
        assert set(re.findall(r"\$\{(\w+):", " ".join(one.text for one in questions(board)))) <= known
        assert board["annotations"]["list"]


def test_what_is_asked_of_prometheus_is_exported_by_a_service() -> None:
    wanted = {name for asked in ASKED if asked.uid == PROMETHEUS for name in metrics(asked.text)}
    assert len(wanted) >= 20
    assert wanted <= exported(), "rename it in infra/grafana as well"


def test_what_is_provisioned_is_what_the_dashboards_ask() -> None:
    folder = ROOT / "infra" / "grafana" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "cypria.yaml").read_text())["datasources"]
    assert {one["uid"] for one in sources} == {asked.uid for asked in ASKED} == {CLICKHOUSE, PROMETHEUS}
    types = {one["uid"]: one["type"] for one in sources}
    for board in boards():
        for panel in panels(board):
            if source := panel.get("datasource"):
                assert types[source["uid"]] == source["type"]
    secrets = [value for one in sources for value in one.get("secureJsonData", {}).values()]
    assert secrets == ["$CYPRIA_CLICKHOUSE_PASSWORD"]
