"""Tables for people; ``--json`` prints what the API said."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console()

_STYLE = {
    "running": "green", "completed": "cyan", "rolled_back": "red", "paused": "yellow", "rolling_back": "red",
    "EMERGENCY": "bold red", "CRITICAL": "red", "WARNING": "yellow", "INFO": "cyan",
}  # fmt: skip


def as_json(data: Any) -> None:
    """Indented JSON on stdout."""
    console.print_json(json.dumps(data))


def number(value: Any, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def styled(word: str | None) -> str:
    """A word in the colour of its meaning."""
    style = _STYLE.get(word or "")
    return f"[{style}]{word}[/{style}]" if style else (word or "-")


def variants(metrics: dict[str, dict[str, Any]], models: dict[str, str] | None = None) -> Table:
    """One row for each variant."""
    table = Table(box=None, header_style="bold")
    for column in ("variant", "model", "requests", "errors %", "avg ms", "p50", "p95", "p99", "TTFT p95", "in flight"):
        table.add_column(column, justify="left" if column in {"variant", "model"} else "right")
    for name, figures in sorted(metrics.items()):
        table.add_row(
            name.removeprefix("variant_").upper(),
            (models or {}).get(name, ""),
            number(figures.get("request_count")),
            number(figures.get("error_rate"), 2),
            number(figures.get("avg_latency_ms")),
            number(figures.get("latency_p50_ms")),
            number(figures.get("latency_p95_ms")),
            number(figures.get("latency_p99_ms")),
            number(figures.get("ttft_p95_ms")),
            number(figures.get("in_flight")),
        )
    return table


def status(data: dict[str, Any]) -> None:
    """The status of one test."""
    if data.get("test_id") is None:
        console.print("no test is running")
        return
    split = data.get("effective_split_percent")
    console.print(
        f"[bold]{data['test_id']}[/bold]  {styled(data.get('status'))}"
        f"  split {number(data.get('traffic_split_percent'), 2)} %"
        + (f" (in force {number(split, 2)} %)" if split is not None else "")
        + f"  {number(data.get('elapsed_minutes'))} min"
    )
    console.print(variants(data.get("metrics") or {}, data.get("models")))
    if summary := (data.get("verdict") or {}).get("summary"):
        console.print(summary)


def result(data: dict[str, Any]) -> None:
    """The result of a test that ended."""
    console.print(f"[bold]{data.get('test_id')}[/bold]  {styled(data.get('status'))}  decision {data.get('decision')}")
    console.print(data.get("reason") or "")
    console.print(variants(data.get("metrics_summary") or {}, data.get("models")))


def rows(items: list[dict[str, Any]], columns: list[str]) -> None:
    """Any list of records as a table."""
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column)
    for item in items:
        table.add_row(*(styled(str(item.get(c))) if item.get(c) is not None else "-" for c in columns))
    console.print(table)
