"""`cypria audit`: who did what, and whether the record of it is whole."""

import re
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console

from schemas.v1.common import rfc3339
from services._cli import api, panels, show
from services._runtime.clock import now_ms

app = typer.Typer(
    invoke_without_command=True, no_args_is_help=False, help="Show who did what; or verify the record of it."
)

_PATH = "/v1/ab-testing/audit"
_PAGE = 10_000
_COLUMNS = ["at_ms", "actor", "action", "status", "outcome", "target", "source", "change"]
_AGO = re.compile(r"([0-9]{1,5})([smhd])")
_UNITS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

LimitOption = Annotated[int, typer.Option("--limit", help="So many at most, newest first.")]
ActorOption = Annotated[str | None, typer.Option("--actor", help="The name of a key, or anonymous.")]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="A time (RFC 3339), or how long ago, such as 90s, 30m, 2h or 7d.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]


@app.callback()
def records(
    context: typer.Context, limit: LimitOption = 50, actor: ActorOption = None, since: SinceOption = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Show who did what, newest first; or one of the commands."""
    if context.invoked_subcommand is None:
        _list(limit, actor, since, json_=json_)


@app.command("list", epilog=panels.examples("audit list"))
def list_(
    limit: LimitOption = 50, actor: ActorOption = None, since: SinceOption = None, json_: JsonOption = False
) -> None:
    """Show who did what, newest first."""
    _list(limit, actor, since, json_=json_)


@app.command("verify", epilog=panels.examples("audit verify"))
def verify(
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="SEQUENCE:HASH", help="A head that was written down: the chain must hold it."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Compute the chain of records anew and compare it with the bus; exit 1 at the first place that does not fit.

    Records that were deleted from the bus alone are told too, and exit 1; the check goes on behind them.
    """
    page: dict[str, Any] = {}
    deleted: list[dict[str, Any]] = []
    checked = compared = total = 0
    with Console(stderr=True).status("") as line:
        while not page.get("complete"):
            page = _page({"cursor": page.get("cursor") or None, "head": None if page else head, "limit": _PAGE})
            checked, compared = checked + page["checked"], compared + page["compared"]
            total = total or page["total"]
            deleted += page.get("deleted", [])
            line.update(f"{checked:,} of {total:,} records")
    sums = {"checked": checked, "compared": compared, "deleted": deleted}
    found = {name: page[name] for name in ("ok", "head", "problem")} | sums
    if json_:
        show.as_json(found)
    elif page["ok"]:
        show.console.print(f"[green]whole[/green]: {checked:,} records, {compared:,} of them also as AUDIT holds them")
        show.console.print(f"head {page['head'] or '-'}", soft_wrap=True)
    else:
        problem = page["problem"]
        show.console.print(show.styled(f"{problem['kind']}: {problem['message']}"), soft_wrap=True)
    for place in [] if json_ else deleted:
        show.console.print(show.styled(f"{place['kind']}: {place['message']}"), soft_wrap=True)
    raise SystemExit(0 if page["ok"] and not deleted else 1)


def _page(params: dict[str, Any]) -> dict[str, Any]:
    """A page of the check. Long records take more of them than the rate limit allows at once: it is kept to."""
    while True:
        try:
            page: dict[str, Any] = api.call("GET", f"{_PATH}/verify", params=params, raises=429)
        except api.ApiError as exc:
            time.sleep(max(1.0, exc.retry_after))
        else:
            return page


def _list(limit: int, actor: str | None, since: str | None, *, json_: bool) -> None:
    params = {"limit": limit, "actor": actor, "since": since_time(since)}
    data = api.call("GET", _PATH, params=params)
    if json_:
        show.as_json(data)
        return
    show.rows([{**record, "change": change(record)} for record in data["records"]], _COLUMNS)
    if data["more"]:
        show.console.print("there are more: give a larger --limit, or --since")


def since_time(text: str | None) -> str | None:
    """A span such as 2h as the time so long ago, a time as it is; ends the command where it is neither."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago is None:
        try:
            datetime.fromisoformat(text)
        except ValueError:
            api.fail(f"--since is '{text}': give a time, such as 2025-01-01T12:00:00Z, or how long ago, such as 2h", 2)
        return text
    return rfc3339(max(0, now_ms() - int(ago[1]) * _UNITS[ago[2]]))


def change(record: dict[str, Any]) -> str:
    """What a record's before and after differ in, in a line."""
    before, after = record.get("before") or {}, record.get("after")
    if after is None:
        return ""
    parts = [
        f"{name} {_word(before[name])} -> {_word(value)}" if name in before else f"{name} {_word(value)}"
        for name, value in after.items()
        if before.get(name) != value and name not in {"version", "test_id", "config_hash"} and value is not None
    ]
    return ", ".join(parts)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
