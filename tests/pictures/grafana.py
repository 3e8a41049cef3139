"""Draws the dashboards: `python -m tests.pictures.grafana` writes docs/images/grafana-*.png.

Each panel's own question is asked of the real engine, over a test that the product's parts folded, watched and rolled
back. What is over Prometheus is left out: there is no such story of its figures. Colours are those of the dashboards;
the rest is drawn here, since no Grafana runs where this does.
"""

import asyncio
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

import clickhouse_connect

from services.metrics.adapters.clickhouse import ClickHouse
from services.metrics.adapters.clickhouse_http import Front
from tests.browser.chromium import browser
from tests.integration.clickhouse.dashboards import CLICKHOUSE, Asked, Range, boards, expanded, questions
from tests.integration.clickhouse.stories import Arm, rolled_back, store
from tests.pictures.panels import STYLE, drawn
from tests.system import ROOT
from tests.unit.monitor.synthetic import START_S, TEST

IMAGES = ROOT / "docs" / "images"
CHOSEN = {"test": [TEST], "model": []}


def page(board: dict[str, Any], answers: dict[str, list[dict[str, Any]]], span: Range) -> str:
    """The whole dashboard. ``answers``: rows by what asked for them (`str` of `Asked`)."""
    uid, marks = board["uid"], []
    for one in board["annotations"]["list"]:
        marks += [(row["time"].timestamp(), one["iconColor"]) for row in answers.get(f"{uid} / annotation {one['name']}", [])]
    parts, waiting = [], ""
    for panel in board["panels"]:
        if panel["type"] == "row":
            waiting = f"<h2>{escape(panel['title'])}</h2>"
        elif rows := answers.get(f"{uid} / {panel['title']}"):
            parts.append(waiting + drawn(panel, rows, marks, (span.since, span.until)))
            waiting = ""
    inside = f"<h1>{escape(board['title'])}</h1><main>{''.join(parts)}</main>"
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><body>{inside}</body>'


async def answered(asked: list[Asked], span: Range, engine: ClickHouse) -> dict[str, list[dict[str, Any]]]:
    """What the engine answers, as Grafana's data source asks it."""
    front = Front(engine.path, "cypria", "cypria", "secret")
    options: dict[str, Any] = {"host": "127.0.0.1", "port": await front.start("127.0.0.1", 0), "username": "cypria", "password": "secret"}
    client = await asyncio.to_thread(clickhouse_connect.get_client, database="cypria", tz_mode="aware", **options)
    found = {}
    for one in asked:
        sql = expanded(one, span, CHOSEN).replace("now()", f"toDateTime({span.until})")
        result = await asyncio.to_thread(client.query, sql)
        found[str(one)] = list(result.named_results())
    client.close()
    await front.stop()
    return found


async def draw(folder: Path) -> list[Path]:
    """One picture of each dashboard into ``folder``."""
    story, drawn_to = rolled_back(worse=Arm(errors=0.02, median_ms=420.0)), []
    span = Range(START_S - 10, START_S + story.second)
    with tempfile.TemporaryDirectory() as data:
        engine = ClickHouse(f"chdb://{data}/chdb")
        await engine.open()
        await engine.write(lambda client: engine.migrate(client, 10_000, 5))
        await store(engine, story)
        asked = [one for board in boards() for one in questions(board) if one.uid == CLICKHOUSE]
        answers = await answered(asked, span, engine)
        engine.close()
    async with browser() as chromium:
        for board in boards():
            sheet = await chromium.new_page(viewport={"width": 1260, "height": 400})
            await sheet.set_content(page(board, answers, span))
            drawn_to.append(folder / f"grafana-{board['uid'].removeprefix('cypria-')}.png")
            await sheet.screenshot(path=drawn_to[-1], full_page=True)
            await sheet.close()
    return drawn_to


if __name__ == "__main__":
    for picture in asyncio.run(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)):
        sys.stdout.write(f"drawn: {picture}\n")
