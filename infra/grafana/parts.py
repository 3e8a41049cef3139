"""What the dashboards are put together from: the two data sources, queries to them, and panels in one style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common as style
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    VariableRefresh,
    VariableSort,
)

CLICKHOUSE = DataSourceRef(type_val="grafana-clickhouse-datasource", uid="cypria-clickhouse")
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="cypria-prometheus")
STEPS = "(since = $__fromTime, until = $__toTime, step = $__interval_s)"
"""The parameters of a view that sums up in steps: the dashboard's time range, in as many steps as a panel shows."""

POINTS = 200
"""Steps of a panel at most: a longer time range has longer steps, and costs no more."""

_COLOURS = {
    "stable": "blue", "canary": "orange", "ok": "green", "client_cancel": "#8e8e8e", "client_error": "#bdbdbd",
    "timeout": "purple", "rejected": "dark-yellow", "error_before_first_token": "red", "error_mid_stream": "dark-red",
}  # fmt: skip
Panel = Any
"""Builders of panels have methods of the same names, and no common base."""


class Sql(variants.Dataquery):
    """One question to ClickHouse, as its data source keeps it: a time series, or a table."""

    def __init__(self, sql: str, *, series: bool, ref: str = "A") -> None:
        self._sql = " ".join(sql.split())
        self._series = series
        self._ref = ref

    def build(self) -> Sql:
        """Itself: a builder and what it builds in one."""
        return self

    def to_json(self) -> dict[str, object]:
        """The data source's model of a query."""
        return {
            "refId": self._ref, "datasource": CLICKHOUSE, "editorType": "sql", "rawSql": self._sql,
            "queryType": "timeseries" if self._series else "table", "format": 0 if self._series else 1,
        }  # fmt: skip


def steps(sql: str) -> str:
    """The SQL with the parameters of the views that sum up in steps."""
    return sql.replace("(STEPS)", STEPS)


def _colour(name: str) -> DynamicConfigValue:
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": _COLOURS[name]})


def _drawn(title: str, unit: str, text: str, *, bars: bool) -> Panel:
    panel = (
        timeseries.Panel().title(title).description(text).unit(unit).height(8).span(8).min(0)
        .line_width(1).fill_opacity(60 if bars else 8).show_points(style.VisibilityMode.AUTO)
        .legend(common.VizLegendOptions().show_legend(True).display_mode(style.LegendDisplayMode.LIST).placement(style.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(style.TooltipDisplayMode.MULTI))
    )  # fmt: skip
    for name in ("stable", "canary"):
        panel.override_by_regexp(f"/\\b{name}$/", [_colour(name)])
    if bars:
        panel.draw_style(style.GraphDrawStyle.BARS).stacking(common.StackingConfig().mode(style.StackingMode.NORMAL))
        for name in list(_COLOURS)[2:]:
            panel.override_by_name(name, [_colour(name)])
    return panel


def line(title: str, unit: str, sql: str, text: str = "", *, name: str = "", bars: bool = False) -> Panel:
    """A panel over time. ``name``: what a series is called, `label` standing for a column's name."""
    panel = _drawn(title, unit, text, bars=bars).datasource(CLICKHOUSE).max_data_points(POINTS).interval("10s")
    return panel.display_name(name or "${__field.name}").with_target(Sql(steps(sql), series=True))


def label(column: str) -> str:
    """The value of this column of text as part of a series' name."""
    return f"${{__field.labels.{column}}}"


def watched(title: str, unit: str, exprs: dict[str, str], text: str = "", *, bars: bool = False) -> Panel:
    """A panel over time from Prometheus: PromQL by legend."""
    panel = _drawn(title, unit, text, bars=bars).datasource(PROMETHEUS)
    for number, (legend, expr) in enumerate(exprs.items()):
        query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + number)).range()
        panel.with_target(query.datasource(PROMETHEUS))
    return panel


def numbers(title: str, sql: str, units: dict[str, str], text: str = "", *, span: int = 24) -> Panel:
    """Columns of one row as big figures or words. ``units``: by column; 'string' for words."""
    panel = (
        stat.Panel().title(title).description(text).datasource(CLICKHOUSE).height(4).span(span)
        .color_mode(style.BigValueColorMode.NONE).graph_mode(style.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/"))
        .with_target(Sql(steps(sql), series=False))
    )  # fmt: skip
    for name, unit in units.items():
        panel.override_by_name(name, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def rows(title: str, sql: str, units: dict[str, str] | None = None, text: str = "", *, span: int = 24) -> Panel:
    """A table."""
    panel = table.Panel().title(title).description(text).datasource(CLICKHOUSE).height(8).span(span)
    for name, unit in (units or {}).items():
        panel.override_by_name(name, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel.with_target(Sql(steps(sql), series=False))


def bars(title: str, unit: str, sql: str, text: str = "", *, span: int = 8) -> Panel:
    """A bar for each row."""
    return (
        bargauge.Panel().title(title).description(text).datasource(CLICKHOUSE).unit(unit).height(8).span(span)
        .orientation(style.VizOrientation.HORIZONTAL).min(0)
        .reduce_options(common.ReduceDataOptions().values(True).calcs(["lastNotNull"]).fields("/.*/"))
        .with_target(Sql(steps(sql), series=False))
    )  # fmt: skip


def states(title: str, sql: str, text: str = "", *, span: int = 24) -> Panel:
    """States over time, a band for each value of the column of text that is not the state."""
    return (
        statetimeline.Panel().title(title).description(text).datasource(CLICKHOUSE).height(8).span(span)
        .merge_values(True).display_name(label("test_id")).with_target(Sql(steps(sql), series=True))
    )  # fmt: skip


def choice(name: str, text: str, sql: str, *, several: bool = False) -> Any:
    """A variable: the first column of the answer is its value, the second, where there is one, what is shown."""
    variable = (
        dashboard.QueryVariable(name).label(text).datasource(CLICKHOUSE).query(" ".join(sql.split()))
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.DISABLED)
    )  # fmt: skip
    return variable.multi(True).include_all(True) if several else variable


def marks(name: str, colour: str, sql: str) -> Any:
    """Annotations: columns time, text and tags."""
    target: Any = Sql(sql, series=False)
    return dashboard.AnnotationQuery().name(name).datasource(CLICKHOUSE).enable(True).icon_color(colour).target(target)


def board(uid: str, title: str, text: str, since: str, parts: Sequence[Panel | str]) -> Any:
    """A dashboard of panels in rows; a text begins a row of that name."""
    made = (
        dashboard.Dashboard(title).uid(uid).description(text).tags(["cypria"]).time(since, "now").timezone("browser")
        .refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR).editable()
        .link(dashboard.DashboardLink("Cypria").type("dashboards").tags(["cypria"]).as_dropdown(False).include_vars(False).keep_time(True))
    )  # fmt: skip
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            made.with_row(dashboard.Row(part).id(number))
        else:
            made.with_panel(part.id(number))
    return made
