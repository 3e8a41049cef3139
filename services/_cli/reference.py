"""Writes docs/cli.md from the command line itself: `python -m services._cli.reference`; with --check only compares."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from services._runtime.generated import bring_up_to_date

TARGET = Path(__file__).resolve().parents[2] / "docs" / "cli.md"

HEAD = """# Command line

`cypria` runs the processes, and asks the control API of a running edge. `cypria COMMAND --help` says all of this in the
terminal; `--json`, where there is one, prints what a program can read. Colours are off where the output is no terminal
or `NO_COLOR` is set; tables are as wide as the terminal, or as `COLUMNS` says. `cypria --version` tells the version.
This page is made from the code: `python -m services._cli.reference`.

| variable | meaning |
| --- | --- |
| `CYPRIA_URL` | the edge, by default `http://127.0.0.1:2242` |
| `CYPRIA_API_KEY`, `CYPRIA_API_KEY_FILE` | the key, or a file that holds it; by default the admin key in the data dir |
| `CYPRIA_DATA_DIR` | where `cypria up` on this machine keeps everything, its admin key too |
| `CYPRIA_CA_FILE`, `CYPRIA_CERT_FILE`, `CYPRIA_KEY_FILE` | of an edge over TLS: whom to trust, and what to show it |
| `APHRODITE_AB_TESTING_CONFIG_PATH` | the configuration file, where there is no `--config` |

## Exit status

| status | meaning |
| --- | --- |
| 0 | done. `watch`: the test has ended, whatever was decided, or it was left with q or Ctrl-C |
| 1 | refused, not reached, or not as hoped for: `load` (a request failed, or a rehearsal ended otherwise than it \
should), `doctor` (a check failed), `replay` (another verdict), `audit verify` (does not fit), `alerts test` and \
`integrations test` (one failed), `models` (an order failed, or it does not fit) |
| 2 | called wrongly, or a variable is no good; `replay`: the verdict cannot be derived |
| 3, 4, 5 | `wait`, `start --wait`: the verdict is `rollback`, `keep_a`, `inconclusive` (0: `promote_b`) |
| 78 | a configuration that cannot be used |
| 124 | `wait`, `start --wait`: no verdict within `--timeout`; the test goes on |
| 129, 130, 143 | ended by a terminal that was closed, by Ctrl-C, or by SIGTERM: a rehearsal (it has cleaned up); by \
Ctrl-C alone: `models` (what was ordered goes on), `wait` and `start --wait` (the test goes on) |

What goes wrong is one line on the standard error that says what to do next.

## Completion

`cypria --install-completion` has bash, zsh and fish complete commands and options, and names of models, keys and tests,
which are asked of the edge; where it does not answer within 1.5 s, or the key may not ask, there are none.

## Watching a test

![`cypria watch` while a canary gets slow](images/watch.svg)

`cypria watch` shows what runs on 80 columns or more, and draws itself anew at each change: in words whether the
canary is safe, both variants' figures, the guardrails with their evidence against the limit (yellow where an e-value
is within a factor of 10 of it), what a promotion still needs, what happened last. Several tests are a line or two
each. It looks every 2 s, and at once when the edge tells of a change; when the connection is lost it says so, and
since when what it shows is old, and comes back by itself. In a pipe it is a line for each change. `--json` prints an
object a line, of which `kind` is `status` (the body of `GET /v1/ab-testing/status`), `event` (what happened; `event`
as it comes on `GET /v1/ab-testing/events`), `connection` (`live`) or `end` (the body of `GET
/v1/ab-testing/tests/{id}`).

## Rehearsals

`cypria load --scenario NAME` without a model shows what Cypria does when a canary goes bad, on a running system and
without touching its models: it listens on two ports of this machine's loopback interface, registers these engines as
`rehearsal-stable` and `rehearsal-canary` (an admin's key), starts a test, sends traffic, prints how many seconds and
requests it took until the canary was out, and takes everything away again; the test stays in the history. Ctrl-C,
SIGTERM and a terminal that is closed end it early: it stops its test, removes its models, says so, and exits with 128
and the signal's number. Another Ctrl-C skips what it then waits for.

| scenario | what happens | should be |
| --- | --- | --- |
"""

BETWEEN = """
A client alone can shape what it sends: `cypria load MODEL --scenario drift` or `burst` does so against a model of
yours. It cannot make your canary worse, so the other two need the throw-away engines. The workers must run on this
machine and may only take engines at addresses that `model_sources.allow` names: with `cypria up` and no configuration
they may, else add `"http://127.0.0.1:2251/"` and `"http://127.0.0.1:2252/"` (`--engine-port`). The engines are no
models: how long they take and how often they fail is thrown with dice, so a rehearsal shows how fast Cypria acts on
so much evidence, not what your hardware does.

## Commands
"""


def render() -> str:
    """The page as Markdown."""
    from services.cli import app

    return HEAD + "\n".join(_scenarios()) + "\n" + BETWEEN + "\n".join(_group(get_command(app), "cypria")) + "\n"


def _scenarios() -> Iterator[str]:
    from services._cli.scenarios import SCENARIOS

    for one in SCENARIOS.values():
        yield f"| `{one.name}` | {one.what} | {'rolled back' if one.bad else 'left alone'} |"


def _group(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield from _command(command, f"{path} {name}")
        if hasattr(command, "commands"):
            yield from _group(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    parameters = [one for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    yield f"\n### {path}\n"
    yield _words(command.help)
    rows = [f"| {_name(one)} | {_words(getattr(one, 'help', '') or '')}{_default(one)} |" for one in parameters]
    if rows:
        yield "\n| argument or option | meaning |\n| --- | --- |"
        yield from rows
    before, _, examples = (command.epilog or "").partition("\b\n")
    if examples:
        said = _words(before).removesuffix("Examples:").strip()
        yield f"\n{said}\n" if said else ""
        yield "```console"
        yield from (line.strip() for line in examples.strip().splitlines())
        yield "```"


def _words(text: str) -> str:
    """On one line, and with what would be a cell's end quoted."""
    return " ".join((text or "").split()).replace("|", r"\|")


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        shown = (parameter.metavar or parameter.name).strip("[]").upper()
        return f"`{shown}`" if parameter.required else f"`[{shown}]`"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"`{names}`" + (" (required)" if parameter.required else "")


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required or default is None or isinstance(default, bool) or not re.search(r"\w", str(default)):
        return ""
    return f" Default: {default}." if isinstance(default, int | float | str) else ""


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is as the code has it; the exit status."""
    return bring_up_to_date(arguments, "python -m services._cli.reference", {TARGET: render()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
