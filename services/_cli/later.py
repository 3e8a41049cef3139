"""Commands that a later version brings: each says so, whatever it is given, and exits with 2."""

import typer

from services._cli import api

COMMANDS = {
    "plan": "sample size, expected duration and detectable effect before a test",
}


def register(app: typer.Typer) -> None:
    """Add them to the command line; they are not in its help."""
    for name, what in COMMANDS.items():
        _add(app, name, what)


def _add(app: typer.Typer, name: str, what: str) -> None:
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name, hidden=True, help=f"In a later version: {what}.", context_settings=anything)
    def command() -> None:
        api.fail(f"`cypria {name}` comes in a later version ({what})", 2)
