"""Panels of a dashboard as HTML and SVG, from their definition in its JSON and the rows that their questions were answered with."""

import itertools
import re
from datetime import UTC, datetime
from html import escape
from typing import Any

from services.router.domain.report.plots import nice

STYLE = """
body { background: #111217; color: #d5d7de; font: 13px "DejaVu Sans", sans-serif; margin: 0; padding: 12px; width: 1236px }
h1 { font-size: 18px; margin: 2px 4px 14px }
h2 { font-size: 14px; grid-column: span 24; margin: 8px 4px 0 }
main { display: grid; gap: 8px; grid-template-columns: repeat(24, 1fr) }
section { background: #181b1f; border: 1px solid #2a2d33; border-radius: 2px; min-width: 0; overflow: hidden; padding: 8px }
h3 { font-size: 13px; margin: 0 0 6px }
table { border-collapse: collapse; width: 100% }
th { color: #6e9fff; font-weight: normal; text-align: left; vertical-align: bottom }
td { max-width: 240px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
th, td { font-size: 11px; padding: 5px 8px 5px 2px }
.figures { display: flex; justify-content: space-around; text-align: center }
.figures b { display: block; font-size: 22px; font-weight: normal; margin: 4px }
.figures span, .legend, svg text { color: #9fa3ad; fill: #9fa3ad; font-size: 11px }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px }
.legend i { display: inline-block; height: 3px; margin: 0 5px 3px 0; width: 14px }
.bar { align-items: center; display: grid; font-size: 11px; gap: 8px; grid-template-columns: 160px 1fr; margin: 5px 0 }
.bar span { text-align: right }
.bar i { display: inline-block; height: 12px; margin-right: 6px; vertical-align: middle }
svg { display: block; width: 100% }
"""
_NAMED = {
    "blue": "#5794f2", "orange": "#ff9830", "green": "#73bf69", "purple": "#b877d9", "red": "#f2495c", "dark-red": "#c4162a",
    "dark-yellow": "#e0b400",
}  # fmt: skip
_PALETTE = ("#5794f2", "#ff9830", "#73bf69", "#f2cc0c", "#b877d9", "#8ab8ff", "#f2495c", "#37872d")
_STATES = {"running": "green", "rolled_back": "red", "completed": "blue", "failed": "dark-red", "paused": "dark-yellow"}
_UNITS = {"percent": " %", "ms": " ms", "reqps": " req/s", "s": " s"}
_WIDE, _HIGH, _LEFT, _BOTTOM = 400, 170, 44, 20
Row = dict[str, Any]


def figure(value: Any, unit: str = "short") -> str:
    """A value as a panel shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%H:%M:%S")
    if not isinstance(value, int | float):
        return str(value)
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.3g}"
    return f"${text}" if unit == "currencyUSD" else text + _UNITS.get(unit, "")


def drawn(panel: dict[str, Any], rows: list[Row], marks: list[tuple[float, str]], span: tuple[float, float]) -> str:
    """One panel. ``marks``: Unix seconds and colours of annotations; ``span``: the time range in Unix seconds."""
    kind = {
        "stat": _stat, "table": _table, "bargauge": _bars, "state-timeline": lambda panel, rows: _states(rows, span, 50 * panel["gridPos"]["w"]),
        "timeseries": lambda panel, rows: _series(panel, rows, marks, span),
    }[panel["type"]]  # fmt: skip
    inside = kind(panel, rows)
    return f'<section style="grid-column: span {panel["gridPos"]["w"]}"><h3>{escape(panel["title"])}</h3>{inside}</section>'


def _unit(panel: dict[str, Any], column: str) -> str:
    config = panel.get("fieldConfig", {})
    for override in config.get("overrides", []):
        if override["matcher"] == {"id": "byName", "options": column}:
            return str(next((one["value"] for one in override["properties"] if one["id"] == "unit"), "short"))
    return str(config.get("defaults", {}).get("unit", "short"))


def _stat(panel: dict[str, Any], rows: list[Row]) -> str:
    figures = (f"<div><b>{escape(figure(value, _unit(panel, name)))}</b><span>{escape(name)}</span></div>" for name, value in rows[0].items())
    return f'<div class="figures">{"".join(figures)}</div>'


def _table(panel: dict[str, Any], rows: list[Row]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    cells = ("".join(f"<td>{escape(figure(value, _unit(panel, name)))}</td>" for name, value in row.items()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _bars(panel: dict[str, Any], rows: list[Row]) -> str:
    made = []
    for row in rows:
        words = " ".join(str(value) for value in row.values() if isinstance(value, str))
        [value] = [value for value in row.values() if isinstance(value, int | float)]
        bar = f'<i style="background: #73bf69; width: {max(1, 0.7 * value):.1f}%"></i>'
        made.append(f'<div class="bar"><span>{escape(words)}</span><div>{bar}{escape(figure(value, _unit(panel, "")))}</div></div>')
    return "".join(made)


def _seconds(at: datetime) -> float:
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def _across(at: float, span: tuple[float, float], wide: int = _WIDE) -> float:
    return _LEFT + (wide - _LEFT) * (at - span[0]) / (span[1] - span[0])


def _clock(span: tuple[float, float], high: float, wide: int = _WIDE) -> str:
    """The scale of times at the foot of a plot."""
    minutes = range(int(span[0] // 60 + 1), int(span[1] // 60 + 1))
    step = max(1, len(minutes) // 4)
    chosen = [60 * minute for minute in minutes if minute % step == 0 and _across(60 * minute, span, wide) < wide - 16]
    words = (datetime.fromtimestamp(at, UTC).strftime("%H:%M") for at in chosen)
    return "".join(
        f'<text x="{_across(at, span, wide):.1f}" y="{high - 4}" text-anchor="middle">{word}</text>' for at, word in zip(chosen, words, strict=True)
    )


def _states(rows: list[Row], span: tuple[float, float], wide: int) -> str:
    bands: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        [at] = [value for value in row.values() if isinstance(value, datetime)]
        bands.setdefault(row["test_id"], []).append((_seconds(at), next(str(v) for k, v in row.items() if k not in {"time", "test_id"})))
    high, parts = 46 * len(bands) + _BOTTOM, []
    for line, (name, changes) in enumerate(sorted(bands.items())):
        y = 46 * line + 14
        parts.append(f'<text x="{_LEFT}" y="{y - 4}">{escape(name)}</text>')
        ends = [at for at, _ in changes[1:]] + [span[1]]
        for (at, state), end in zip(changes, ends, strict=True):
            x, long = _across(at, span, wide), max(1.0, _across(end, span, wide) - _across(at, span, wide))
            colour = _NAMED[_STATES.get(state, "purple")]
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="24" fill="{colour}"/>')
            parts.append(f'<text x="{x + 5:.1f}" y="{y + 16}" style="fill: #111217">{escape(state) if long > 60 else ""}</text>')
    return f'<svg viewBox="0 0 {wide} {high}">{"".join(parts)}{_clock(span, high, wide)}</svg>'


def _named(panel: dict[str, Any], column: str, labels: dict[str, str]) -> str:
    template = panel["fieldConfig"]["defaults"].get("displayName", "${__field.name}")
    return re.sub(r"\$\{__field\.(name|labels\.(\w+))\}", lambda m: labels.get(m[2], "") if m[2] else column, template)


def _colours(panel: dict[str, Any], names: list[str]) -> dict[str, str]:
    chosen = {}
    for number, name in enumerate(names):
        chosen[name] = _PALETTE[number % len(_PALETTE)]
        for override in panel["fieldConfig"].get("overrides", []):
            by, wanted = override["matcher"]["id"], override["matcher"]["options"]
            if (by == "byName" and wanted == name) or (by == "byRegexp" and re.search(wanted.strip("/"), name)):
                for one in override["properties"]:
                    if one["id"] == "color":
                        chosen[name] = _NAMED.get(one["value"]["fixedColor"], one["value"]["fixedColor"])
    return chosen


def _series(panel: dict[str, Any], rows: list[Row], marks: list[tuple[float, str]], span: tuple[float, float]) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        [at] = [value for value in row.values() if isinstance(value, datetime)]
        labels = {name: value for name, value in row.items() if isinstance(value, str)}
        for column, value in row.items():
            if isinstance(value, int | float):
                series.setdefault(_named(panel, column, labels), []).append((_seconds(at), float(value)))
    custom, colours = panel["fieldConfig"]["defaults"].get("custom", {}), _colours(panel, list(series))
    stacked = custom.get("drawStyle") == "bars"
    sums: dict[float, float] = {}
    for points in series.values():
        for at, value in points:
            sums[at] = sums.get(at, 0.0) + value if stacked else max(sums.get(at, value), value)
    top = max(sums.values(), default=1.0) * 1.08 or 1.0
    bottom = min((value for points in series.values() for _, value in points), default=0.0)
    bottom = 0.0 if bottom >= 0 else bottom * 1.08
    plot = _HIGH - _BOTTOM

    def up(value: float) -> float:
        return plot - (plot - 8) * (value - bottom) / (top - bottom)

    parts = []
    for value in nice(bottom, top):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDE}" y1="{up(value):.1f}" y2="{up(value):.1f}" stroke="#2a2d33"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{up(value) + 4:.1f}" text-anchor="end">{value:,.12g}</text>')
    floor: dict[float, float] = {}
    times = sorted(sums)
    step = min((after - before for before, after in itertools.pairwise(times)), default=10.0)
    wide = 0.8 * (_WIDE - _LEFT) * step / (span[1] - span[0])
    for name, points in series.items():
        if stacked:
            for at, value in points:
                low = floor.get(at, 0.0)
                floor[at] = low + value
                place = f'x="{_across(at, span):.1f}" y="{up(low + value):.1f}" width="{wide:.1f}" height="{up(low) - up(low + value):.1f}"'
                parts.append(f'<rect {place} fill="{colours[name]}"/>')
        else:
            dashes = {"p95": "6 3", "p99": "2 3"}.get(name.split()[0], "none")
            line = " ".join(f"{_across(at, span):.1f},{up(value):.1f}" for at, value in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="1.5" stroke-dasharray="{dashes}"/>')
            if len(points) == 1:
                parts.append(f'<circle cx="{_across(points[0][0], span):.1f}" cy="{up(points[0][1]):.1f}" r="2" fill="{colours[name]}"/>')
    for at, colour in marks:
        x = _across(at, span)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{plot}" stroke="{_NAMED.get(colour, colour)}" stroke-dasharray="4 3"/>')
    unit = panel["fieldConfig"]["defaults"].get("unit", "")
    named = {"currencyUSD": "$", "short": ""}.get(unit, _UNITS.get(unit, "").strip())
    legend = "".join(f'<span><i style="background: {colours[name]}"></i>{escape(name)}</span>' for name in series)
    plotted = f'<svg viewBox="0 0 {_WIDE} {_HIGH}"><text x="{_LEFT + 4}" y="12">{named}</text>{"".join(parts)}{_clock(span, _HIGH)}</svg>'
    return f'{plotted}<div class="legend">{legend}</div>'
