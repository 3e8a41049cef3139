"""`cypria keys`: what keys there are; and make, rotate and revoke them."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from services._cli import api, complete, panels, show

app = typer.Typer(no_args_is_help=True, help="List API keys; or create, rotate and revoke them. For admins.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
NameArgument = Annotated[
    str, typer.Argument(autocompletion=complete.keys, help="Of the key, as `cypria keys list` shows it.")
]
_PATH = "/v1/ab-testing/keys"
_ROW = (
    "name", "role", "state", "source", "created_at", "created_by", "expires_at", "rotated_at", "previous_until",
)  # fmt: skip
_LIMITS = ("requests_per_minute", "control_per_minute")
"""Columns only where some key has one of its own."""
_CREATE = """
The key alone goes to the standard output, this once; everything else to the standard error. Examples:

\b
  cypria keys create app --role client > app.key
  cypria keys create ci --role operator --expires-in-days 90
  cypria keys create audit --role viewer --expires-at 2027-01-31T00:00:00Z
  cypria keys create batch --role client --requests-per-minute 600
"""
_ROTATE = """
The new key alone goes to the standard output, this once. Examples:

\b
  cypria keys rotate app --overlap-seconds 86400 > app.key
  cypria keys rotate app --overlap-seconds 0
  cypria keys rotate ci --expires-in-days 90
"""


@app.command("list", epilog=panels.examples("keys list"))
def list_(json_: JsonOption = False) -> None:
    """List keys, their role, state and limits; never the keys themselves. "ends soon": within 7 days."""
    data = api.call("GET", _PATH)
    if json_:
        show.as_json(data)
    else:
        limits = [name for name in _LIMITS if any(key.get(name) is not None for key in data["keys"])]
        show.rows([_marked(key) for key in data["keys"]], [*_ROW, *limits])


@app.command("create", epilog=_CREATE)
def create(
    name: Annotated[str, typer.Argument(help="What the key is to be called.")],
    role: Annotated[str, typer.Option("--role", help="client, viewer, operator or admin.")],
    expires_in_days: Annotated[
        float | None, typer.Option("--expires-in-days", help="At most 366; by default it does not expire.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option("--expires-at", help="Then instead (RFC 3339), also later.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option("--requests-per-minute", help="Its own limit of inference; else the configured one.")
    ] = None,
    control_per_minute: Annotated[
        int | None, typer.Option("--control-per-minute", help="Its own limit of control requests; likewise.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a key and print it this once."""
    given = {
        "expires_in_days": expires_in_days, "expires_at": expires_at, "requests_per_minute": requests_per_minute,
        "control_per_minute": control_per_minute,
    }  # fmt: skip
    body: dict[str, Any] = {"name": name, "role": role} | _set(given)
    data = api.call("POST", _PATH, body=body)
    ending = f"expires {data['expires_at']}" if data["expires_at"] else "does not expire"
    _made(data, f"key {data['name']} of role {data['role']} {ending}", json_=json_)


@app.command("rotate", epilog=_ROTATE)
def rotate(
    name: NameArgument,
    overlap_seconds: Annotated[
        int | None,
        typer.Option("--overlap-seconds", min=0, help="How long the old key stays good; an hour by default."),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option("--expires-in-days", help="At most 366; by default as the old one would have.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option("--expires-at", help="Then instead (RFC 3339), also later.")] = None,
    json_: JsonOption = False,
) -> None:
    """Put a new key in the place of one and print it this once. It keeps the limits of the old one."""
    body = _set({"overlap_seconds": overlap_seconds, "expires_in_days": expires_in_days, "expires_at": expires_at})
    data = api.call("POST", f"{_PATH}/{quote(name, safe='')}/rotate", body=body)
    until = f"the old one is good until {data['previous_until']}" if data["previous_until"] else "the old one has ended"
    _made(data, f"key {data['name']} rotated: {until}", json_=json_)


@app.command("revoke", epilog=panels.examples("keys revoke"))
def revoke(name: NameArgument, json_: JsonOption = False) -> None:
    """End a key at once, on every router."""
    data = api.call("POST", f"{_PATH}/{quote(name, safe='')}/revoke", body={})
    if json_:
        show.as_json(data)
    else:
        show.console.print(show.styled(f"key {data['name']} is {data['state']} since {data['revoked_at']}"))


def _set(given: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in given.items() if value is not None}


def _marked(key: dict[str, Any]) -> dict[str, Any]:
    return {**key, "state": "active, ends soon"} if key.get("ends_soon") else key


def _made(data: dict[str, Any], said: str, *, json_: bool) -> None:
    """The key by itself on stdout, so that it can be piped to where it belongs."""
    if json_:
        show.as_json(data)
        return
    sys.stderr.write(f"{said}; it is shown this once\n")
    sys.stdout.write(f"{data['key']}\n")
