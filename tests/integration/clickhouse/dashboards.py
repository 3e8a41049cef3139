"""The committed dashboards as Grafana would ask them: every query with its macros and variables expanded."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system import ROOT

FOLDER = ROOT / "infra" / "grafana" / "dashboards"
CLICKHOUSE, PROMETHEUS = "cypria-clickhouse", "cypria-prometheus"
_POINTS_ACROSS = 1000
"""Steps of a panel that sets no bound: about one for a pixel."""
_ROUNDED = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800)


@dataclass(frozen=True)
class Asked:
    """A query of a dashboard, where it stands, and how many steps its panel shows."""

    board: str
    where: str
    text: str
    uid: str
    points: int = _POINTS_ACROSS
    least_s: int = 1

    def __str__(self) -> str:
        return f"{self.board} / {self.where}"


@dataclass(frozen=True)
class Range:
    """A dashboard's time range in Unix seconds."""

    since: int
    until: int

    def step(self, asked: Asked) -> int:
        """Grafana's interval: the range in so many points, rounded up, and not below the panel's least."""
        wanted = max((self.until - self.since) / asked.points, asked.least_s)
        return next(step for step in _ROUNDED if step >= wanted)


def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def questions(board: dict[str, Any]) -> Iterator[Asked]:
    """Those of every panel, annotation and variable."""
    title = board["uid"]
    for panel in panels(board):
        for target in panel.get("targets", []):
            text = target.get("rawSql") or target["expr"]
            points, least = panel.get("maxDataPoints", _POINTS_ACROSS), int(panel.get("interval", "1s").removesuffix("s"))
            yield Asked(title, panel["title"], text, target["datasource"]["uid"], int(points), least)
    for mark in board.get("annotations", {}).get("list", []):
        yield Asked(title, f"annotation {mark['name']}", mark["target"]["rawSql"], mark["datasource"]["uid"])
    for variable in board.get("templating", {}).get("list", []):
        yield Asked(title, f"variable {variable['name']}", variable["query"], variable["datasource"]["uid"])


def expanded(asked: Asked, span: Range, variables: dict[str, list[str]]) -> str:
    """SQL as it reaches ClickHouse. An empty list of values is 'All'."""
    step = span.step(asked)
    text = _variables(_conditional(asked.text, variables), variables)
    for name, at in (("from", span.since), ("to", span.until)):
        text = text.replace(f"$__{name}Time_ms", f"fromUnixTimestamp64Milli({at}000)").replace(f"$__{name}Time", f"toDateTime({at})")
    since, until = span.since, span.until
    between = f"{{0}} >= toDateTime({since}) AND {{0}} <= toDateTime({until})"
    days = f"{{0}} >= toDate(toDateTime({since})) AND {{0}} <= toDate(toDateTime({until}))"
    macros = {
        "timeFilter": between,
        "timeFilter_ms": f"{{0}} >= fromUnixTimestamp64Milli({since}000) AND {{0}} <= fromUnixTimestamp64Milli({until}000)",
        "dateFilter": days,
        "dateTimeFilter": f"{days} AND {between.replace('{0}', '{1}')}",
        "timeInterval": f"toStartOfInterval(toDateTime({{0}}), INTERVAL {step} second)",
        "timeInterval_ms": f"toStartOfInterval(toDateTime64({{0}}, 3), INTERVAL {step}000 millisecond)",
    }  # fmt: skip
    for name, made in macros.items():
        text = re.sub(rf"\$__{name}\(([^()]*)\)", lambda m, made=made: made.format(*map(str.strip, m[1].split(","))), text)
    text = re.sub(r"\$__interval_s\b(\(\))?", str(step), text)
    assert "$" not in text, f"{asked}: {text}"
    return text


def _conditional(text: str, variables: dict[str, list[str]]) -> str:
    """`$__conditionalAll(condition, $name)`: the condition, or 1=1 where all values are meant."""
    mark = "$__conditionalAll("
    while (start := text.find(mark)) >= 0:
        depth, end = 1, start + len(mark)
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        condition, _, name = text[start + len(mark) : end - 1].rpartition(",")
        known = variables[name.strip().strip("${}")]
        text = text[:start] + (condition if known else "1=1") + text[end:]
    return text


def _variables(text: str, variables: dict[str, list[str]]) -> str:
    def value(match: re.Match[str]) -> str:
        values, form = variables[match[1]], match[2] or ""
        if form == ":singlequote":
            return ",".join("'" + one.replace("'", "\\'") + "'" for one in values)
        if form == ":sqlstring":
            return ",".join("'" + one.replace("'", "''") + "'" for one in values)
        return ",".join(values)

    return re.sub(r"\$\{(\w+)(:\w+)?\}", value, text)


def metrics(expr: str) -> set[str]:
    """The metrics that an expression of PromQL asks for, as they are declared."""
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"\bcypria_\w+", expr)}


def exported() -> set[str]:
    """Every metric that a service declares, whatever kind it is."""
    from services.inference.adapters.gauges import _FIGURES

    text = "\n".join(path.read_text() for path in Path(ROOT / "services").rglob("*.py"))
    names = set(re.findall(r'"(cypria_\w+)"', text))
    names |= {f"cypria_{service}_dead_letters" for service in re.findall(r'\bdead_letters\("(\w+)"', text)}
    return {name.removesuffix("_total") for name in names} | {f"cypria_inference_{name}" for name, *_ in _FIGURES}
