"""`cypria integrations`: other systems that are told what happens to tests."""

from typing import Annotated, Any

import typer

from services._cli import api, panels, show, telling

app = typer.Typer(
    no_args_is_help=True, help="List integrations, find out whether they can be told something, send dead letters back."
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
NameOption = Annotated[str | None, typer.Option("--integration", help="By default all of them.")]


@app.command("list", epilog=panels.examples("integrations list"))
def list_(json_: JsonOption = False) -> None:
    """List integrations, what waits for each, and what became of its last message."""
    data = api.call("GET", "/v1/ab-testing/integrations")
    if json_:
        show.as_json(data)
        return
    columns = ["integration", "type", "waiting", "in_hand", "dead_letters", "last", "status", "at_ms", "reason"]
    show.rows([_row(one) for one in data["integrations"]], columns)


@app.command("test", epilog=panels.examples("integrations test"))
def probe(integration: NameOption = None, json_: JsonOption = False) -> None:
    """Find out whether integrations could be told something; the exit status is 1 where one could not."""
    telling.tested("integrations", "integrations", "integration", integration, json_)


@app.command("redrive", epilog=panels.examples("integrations redrive"))
def redrive(integration: NameOption = None, json_: JsonOption = False) -> None:
    """Tell integrations once more what they would not take."""
    telling.redriven("integrations", "integration", "event", integration, json_)


def _row(one: dict[str, Any]) -> dict[str, Any]:
    last = one.get("last") or {}
    return {**one, **last, "last": last.get("event")}
