"""`cypria alerts`: the service itself, and what one asks of it."""

import importlib
import os
from pathlib import Path
from typing import Annotated

import typer

from services._cli import api, panels, show, telling

app = typer.Typer(
    invoke_without_command=True, no_args_is_help=False,
    help="Run the alerts service alone; or list alerts, test destinations, send dead letters back.",
)  # fmt: skip

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]


@app.callback()
def service(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", help="The YAML configuration file.")] = None,
) -> None:
    """Run the alerts service alone (same as python -m services.alerts); or one of the commands."""
    if context.invoked_subcommand is None:
        from services._runtime.server import run

        named = os.environ.get("APHRODITE_AB_TESTING_CONFIG_PATH")
        module = importlib.import_module("services.alerts.app")
        run("alerts", module.build_app, config or (Path(named) if named else None))


@app.command("list", epilog=panels.examples("alerts list"))
def list_(
    limit: Annotated[int, typer.Option("--limit", help="So many at most, newest first.")] = 20,
    test_id: Annotated[str | None, typer.Option("--test-id", help="Of one test only.")] = None,
    json_: JsonOption = False,
) -> None:
    """List alerts, newest first."""
    data = api.call("GET", "/v1/ab-testing/monitoring/alerts", params={"limit": limit, "test_id": test_id})
    if json_:
        show.as_json(data)
    else:
        show.rows(data["alerts"], ["time", "level", "title", "message"])


@app.command("test", epilog=panels.examples("alerts test"))
def probe(json_: JsonOption = False) -> None:
    """Send a test alert to each destination; the exit status is 1 where one failed."""
    telling.tested("alerts", "destinations", "destination", None, json_)


@app.command("redrive", epilog=panels.examples("alerts redrive"))
def redrive(
    destination: Annotated[str | None, typer.Option("--destination", help="By default all of them.")] = None,
    json_: JsonOption = False,
) -> None:
    """Send back the alerts that destinations would not take."""
    telling.redriven("alerts", "destination", "alert", destination, json_)
