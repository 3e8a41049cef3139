"""`cypria units`: what is held on one unit, and erasing it. The unit itself is never on the command line."""

import getpass
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from services._cli import api, show

app = typer.Typer(
    no_args_is_help=True, help="Export what is held on one unit (session, user, key, address), or erase it."
)

FileArgument = Annotated[
    Path | None, typer.Argument(help="A file that holds the unit and nothing else; by default standard input.")
]
SourceOption = Annotated[
    str | None, typer.Option("--source", help="Where requests bring it, as in assignment.unit; only checked.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON, all pages as one.")]
_EXAMPLES = """
Examples:

\b
  printf %s "$USER_ID" | cypria units {0}
  cypria units {0} unit.txt --source x_session_id
"""


@app.command(epilog=_EXAMPLES.format("export"))
def export(file: FileArgument = None, source: SourceOption = None, json_: JsonOption = False) -> None:
    """Show what is held on a unit in each test that still has its salt."""
    data = _all_pages("export", _unit(file), source)
    if json_:
        show.as_json(data)
        return
    tests = data["tests"]
    rows = [{**test, "held": ", ".join(test["held"]), "facts": len(test["facts"])} for test in tests]
    show.rows(rows, ["test_id", "variant", "first_seen", "last_seen", "windows", "facts", "held", "erased_at"])
    if data["remains"]:
        show.console.print(f"what remains: {data['remains']}", highlight=False)
    facts = [{"test_id": test["test_id"], **fact} for test in tests for fact in test["facts"]]
    if facts:
        show.rows(facts, ["test_id", "at_ms", "kind", "variant", "outcome", "latency_us"])


@app.command(epilog=_EXAMPLES.format("erase"))
def erase(file: FileArgument = None, source: SourceOption = None, json_: JsonOption = False) -> None:
    """Make a unit nobody in each test that still has its salt, and delete its facts. There is no way back."""
    data = _all_pages("erase", _unit(file), source)
    if json_:
        show.as_json(data)
        return
    show.rows(data["tests"], ["test_id", "erased_at", "batches", "left"])
    show.console.print(f"what remains: {data['remains']}", highlight=False)


def _unit(file: Path | None) -> str:
    if file is not None:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as exc:
            api.fail(f"{file} cannot be read ({exc})", 2)
    else:
        text = getpass.getpass("unit: ") if sys.stdin.isatty() else _piped()
    unit = text.removesuffix("\n").removesuffix("\r")
    if not unit:
        api.fail("no unit: give it on standard input, or name a file that holds it", 2)
    return unit


def _piped() -> str:
    # Bytes, as Python's own reading lets what is no UTF-8 pass as characters that no request can hold.
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        api.fail(f"the unit is not UTF-8 (byte {exc.start + 1}): give it as requests bring it", 2)


def _all_pages(verb: str, unit: str, source: str | None) -> dict[str, Any]:
    """All pages as one: what a later page says of the same test is added to it."""
    tests: dict[str, dict[str, Any]] = {}
    cursor: str | None = None
    remains: str | None = None
    body = {"unit": unit} | ({"source": source} if source else {})
    with show.wide(stderr=True).status("looking through what is stored") as progress:
        while True:
            page = api.call("POST", f"/v1/ab-testing/units/{verb}", body=body | ({"cursor": cursor} if cursor else {}))
            for test in page["tests"]:
                _merge(tests.setdefault(test["test_id"], {}), test)
            cursor, remains = page.get("next"), page.get("remains") or remains
            if cursor is None:
                return {**page, "tests": list(tests.values()), "remains": remains}
            progress.update(f"looking through what is stored: test {len(tests)}, {cursor.split('/')[1]}")


def _merge(known: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        before = known.get(name)
        if before is None or (name == "last_seen" and value is not None):
            known[name] = value
        elif isinstance(value, list):
            known[name] = before + [one for one in value if name == "facts" or one not in before]
        elif isinstance(value, int):
            known[name] = before + value
