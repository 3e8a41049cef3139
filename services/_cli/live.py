"""`cypria watch` and `cypria load`: how they are called; what they do is imported when they do it."""

from typing import Annotated

import typer

from services._cli import complete, panels

_WATCH = """
q or Ctrl-C leaves; the test goes on. Where the output is no terminal, it is a line for each change.

Examples:

\b
  cypria watch
  cypria watch ab_test_01a216392387b1f58787 --go-on
  cypria watch --json | jq -r 'select(.kind == "end") | .decision'
"""
_LOAD = """
Examples:

\b
  cypria load stable --rate 20 --seconds 60 --users 200 --stream
  cypria load stable --scenario burst --seconds 60
  cypria load --scenario bad-canary
  cypria load --scenario slow-canary --rate 20 --seconds 120
"""


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    app.command("watch", epilog=_WATCH, rich_help_panel=panels.TESTS)(watch)
    app.command("load", epilog=_LOAD, rich_help_panel=panels.TRYING)(load)


def watch(
    test_id: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete.tests, help="By default whatever runs; waits for a start where nothing does."
        ),
    ] = None,
    go_on: Annotated[bool, typer.Option("--go-on", help="Wait for the next test where one has ended.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print a JSON object for each change, one a line.")] = False,
) -> None:
    """Watch the running test live: figures, guardrails, what a promotion needs, what happens; ends with the test."""
    from services._cli import watch as watching

    watching.watch(test_id, go_on=go_on, json_=json_)

def load(
    model: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete.models,
            help="The stable model of a test, or any other; without it a scenario is rehearsed.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.01, max=100_000, help="Requests a second, in the mean.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long; a rehearsal ends at a rollback.")] = 30,
    scenario: Annotated[
        str | None, typer.Option("--scenario", help="bad-canary, slow-canary, drift or burst.")
    ] = None,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Ask for streamed answers; by default in a rehearsal.")
    ] = None,
    users: Annotated[int, typer.Option("--users", min=0, help="How many users to name; 0 names none.")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Asked for in each request.")] = 16,
    split: Annotated[float, typer.Option("--split", help="Percent of traffic to the canary of a rehearsal.")] = 30,
    engine_port: Annotated[
        int, typer.Option("--engine-port", min=1, max=65_534, help="Of a rehearsal's engines, with the next one.")
    ] = 2251,
    json_: Annotated[bool, typer.Option("--json", help="Print what clients saw as JSON.")] = False,
) -> None:
    """Send open-loop traffic to the edge and show what clients saw; exit 1 where a request failed.

    With --scenario drift or burst, the load is shaped so.

    Without MODEL a scenario is rehearsed: two throw-away engines on this machine's loopback interface are registered
    (by an admin's key), tested against each other, and removed again; exit 1 where Cypria did not do as it should.
    """
    from services._cli import loading

    loading.run(
        loading.Order(
            model=model, scenario=scenario, rate=rate, seconds=seconds, users=users, max_tokens=max_tokens, split=split,
            stream=model is None if stream is None else stream, port=engine_port, json=json_,
        )
    )  # fmt: skip
