"""Tables for people; ``--json`` prints what the API said."""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from rich.text import Text

_WIDTH = 240


def wide(**options: Any) -> Console:
    """A console on stdout; where that is a file or a pipe, wide enough for the tables (or as COLUMNS says)."""
    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_WIDTH if unknown else None, **options)


console = wide()


def working(what: str) -> Status:
    """Says on a terminal what takes a while, for as long as the block runs."""
    return wide(stderr=True).status(what)


_STYLE = {
    "running": "green", "completed": "cyan", "rolled_back": "red", "paused": "yellow", "rolling_back": "red",
    "ok": "green", "warning": "yellow", "failed": "bold red",
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


def styled(word: str | None) -> Text:
    """A word in the colour of its meaning. Text from outside is never markup and moves no cursor."""
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in word or "-")
    return Text(shown, style=_STYLE.get(shown, ""))


def variants(metrics: dict[str, dict[str, Any]], models: dict[str, str] | None = None) -> Table:
    """One row for each variant, in 80 columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    for column in ("variant", "model", "requests", "errors %", "avg ms", "p50", "p95", "p99", "TTFT p95", "in flight"):
        whole = column != "model" and " " not in column
        table.add_column(
            column, justify="left" if column in {"variant", "model"} else "right", no_wrap=whole, overflow="fold"
        )
    for name, figures in sorted(metrics.items()):
        table.add_row(
            name.removeprefix("variant_").upper(),
            styled((models or {}).get(name, "")),
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
    figures = f"  split {number(data.get('traffic_split_percent'), 2)} %"
    figures += f" (in force {number(split, 2)} %)" if split is not None else ""
    figures += f"  {number(data.get('elapsed_minutes'))} min"
    console.print(Text.assemble((data["test_id"], "bold"), "  ", styled(data.get("status")), figures))
    if stands := data.get("ramp"):
        console.print(styled(ramp(stands)))
    if retry_at := data.get("retry_at"):
        console.print(styled(f"stepped down; goes back up at {retry_at}"))
    if waiting := data.get("waiting_for"):
        console.print(styled(f"waiting for: {waiting}"))
    console.print(variants(data.get("metrics") or {}, data.get("models")))
    if summary := (data.get("verdict") or {}).get("summary"):
        console.print(styled(summary))


def ramp(stands: dict[str, Any]) -> str:
    """Where a ramp stands, in a line; its present step stands in brackets."""
    shares = [number(share, 2) if share % 1 else f"{share:.0f}" for share in stands["shares"]]
    shares[stands["step"] - 1] = f"[{shares[stands['step'] - 1]}]"
    line = f"ramp step {stands['step']} of {stands['of']}: {' '.join(shares)} %"
    if stands.get("held"):
        return f"{line}, held: {stands['held']}"
    gate = f"gate {stands['gate']}" + (" (approved)" if stands.get("approved") and stands["gate"] == "manual" else "")
    return f"{line}, {gate}, soaks {number(stands.get('soak_left_minutes'))} min more"


def result(data: dict[str, Any]) -> None:
    """The result of a test that ended."""
    decision = f"  decision {data.get('decision')}"
    console.print(Text.assemble((data["test_id"], "bold"), "  ", styled(data.get("status")), decision))
    console.print(styled(data.get("reason") or ""))
    console.print(variants(data.get("metrics_summary") or {}, data.get("models")))


def rows(items: list[dict[str, Any]], columns: list[str]) -> None:
    """Any list of records as a table; what stands first and times stay whole, and ``at_ms`` is shown as a time."""
    table = Table(box=None, header_style="bold")
    for column in columns:
        whole = column == columns[0] or column in {"at_ms", "end_time"}
        table.add_column("time" if column == "at_ms" else column, no_wrap=whole, overflow="fold")
    for item in items:
        table.add_row(*(_cell(column, item.get(column)) for column in columns))
    console.print(table)


def _cell(column: str, value: Any) -> Text:
    if column == "at_ms" and isinstance(value, int):
        value = datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="seconds")
    return styled(None if value is None else str(value))


def markdown(text: str) -> None:
    """Markdown, laid out for the terminal; as it is where the output is a file or a pipe."""
    if console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(text))
    else:
        console.file.write(text)


def replay(data: dict[str, Any]) -> None:
    """A recorded verdict beside the one that the evidence gives now; or why there is none to compare."""
    if data.get("same") is None:
        console.print(escape(str(data.get("message") or data.get("state"))))
        return
    table = Table(box=None, header_style="bold")
    for column in ("", "recorded", "replayed"):
        table.add_column(column)
    recorded, replayed = data.get("recorded") or {}, data.get("replayed") or {}
    for name, label in (("decision", "decision"), ("rule", "rule"), ("tick", "tick"), ("log_e", "ln E"),
                        ("value", "value"), ("n_a", "n of A"), ("n_b", "n of B")):  # fmt: skip
        table.add_row(label, *("-" if side.get(name) is None else repr_of(side[name]) for side in (recorded, replayed)))
    console.print(table)
    if data.get("same"):
        console.print(f"[green]the same verdict[/green], from {data.get('ticks'):,} ticks of evidence")
    else:
        console.print(f"[red]not the same verdict[/red]: {escape('; '.join(data.get('differences') or []))}")


def repr_of(value: Any) -> str:
    """A value with all its digits."""
    return escape(repr(value) if isinstance(value, float) else str(value))
