"""`cypria keys`: what keys there are; and make, rotate and revoke them."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from services._cli import api, show

app = typer.Typer(no_args_is_help=True, help="List API keys; or create, rotate and revoke them. For admins.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
_PATH = "/v1/ab-testing/keys"
_ROW = (
    "name", "role", "state", "source", "created_at", "created_by", "expires_at", "rotated_at", "previous_until",
)  # fmt: skip
_CREATE = """
The key alone goes to the standard output, this once; everything else to the standard error. Examples:

\b
  cypria keys create app --role client > app.key
  cypria keys create ci --role operator --expires-in-days 90
  cypria keys create audit --role viewer --expires-at 2027-01-31T00:00:00Z
"""
_ROTATE = """
The new key alone goes to the standard output, this once. Examples:

\b
  cypria keys rotate app --overlap-seconds 86400 > app.key
  cypria keys rotate app --overlap-seconds 0
"""


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """List keys, their role and state; never the keys themselves."""
    data = api.call("GET", _PATH)
    if json_:
        show.as_json(data)
    else:
        show.rows(data["keys"], [*_ROW])


@app.command("create", epilog=_CREATE)
def create(
    name: str,
    role: Annotated[str, typer.Option("--role", help="client, viewer, operator or admin.")],
    expires_in_days: Annotated[float | None, typer.Option("--expires-in-days", help="By default never.")] = None,
    expires_at: Annotated[str | None, typer.Option("--expires-at", help="Then instead (RFC 3339).")] = None,
    json_: JsonOption = False,
) -> None:
    """Make a key and print it this once."""
    body: dict[str, Any] = {"name": name, "role": role}
    ends = {"expires_in_days": expires_in_days, "expires_at": expires_at}
    body |= {field: value for field, value in ends.items() if value is not None}
    data = api.call("POST", _PATH, body=body)
    ending = f"expires {data['expires_at']}" if data["expires_at"] else "does not expire"
    _made(data, f"key {data['name']} of role {data['role']} {ending}", json_=json_)


@app.command("rotate", epilog=_ROTATE)
def rotate(
    name: str,
    overlap_seconds: Annotated[
        int | None,
        typer.Option("--overlap-seconds", min=0, help="How long the old key stays good; an hour by default."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Put a new key in the place of one and print it this once."""
    body = {} if overlap_seconds is None else {"overlap_seconds": overlap_seconds}
    data = api.call("POST", f"{_PATH}/{quote(name, safe='')}/rotate", body=body)
    until = f"the old one is good until {data['previous_until']}" if data["previous_until"] else "the old one has ended"
    _made(data, f"key {data['name']} rotated: {until}", json_=json_)


@app.command("revoke")
def revoke(name: str, json_: JsonOption = False) -> None:
    """End a key at once, on every router."""
    data = api.call("POST", f"{_PATH}/{quote(name, safe='')}/revoke", body={})
    if json_:
        show.as_json(data)
    else:
        show.console.print(show.styled(f"key {data['name']} is {data['state']} since {data['revoked_at']}"))


def _made(data: dict[str, Any], said: str, *, json_: bool) -> None:
    """The key by itself on stdout, so that it can be piped to where it belongs."""
    if json_:
        show.as_json(data)
        return
    sys.stderr.write(f"{said}; it is shown this once\n")
    sys.stdout.write(f"{data['key']}\n")
