"""What `cypria alerts` and `cypria integrations` ask alike of those who are told something."""

from typing import Any, NoReturn

from services._cli import api, show


def tested(group: str, listed: str, what: str, name: str | None, json_: bool) -> NoReturn:
    """Have a test sent, and show what became of it at each; the exit status is 1 where one failed.

    ``group`` is the part of the path, ``listed`` the field with a row for each, ``what`` is called so.
    """
    with show.working("telling, and waiting for what they say"):
        data = api.call("POST", f"/v1/ab-testing/{group}/test", body=_named(what, name))
    if json_:
        show.as_json(data)
    else:
        show.rows(data[listed], [what, "type", "outcome", "reason", "seconds"])
    raise SystemExit(1 if any(one["outcome"] != "sent" for one in data[listed]) else 0)


def redriven(group: str, what: str, letter: str, name: str | None, json_: bool) -> None:
    """Have dead letters sent back, and show how many were and why others were not; a ``letter`` is called so."""
    data = api.call("POST", f"/v1/ab-testing/{group}/redrive", body=_named(what, name))
    if json_:
        show.as_json(data)
        return
    show.console.print(f"sent back {data['redriven']}, left {len(data['skipped'])}")
    if data["skipped"]:
        show.rows(data["skipped"], [what, letter, "reason"])


def _named(what: str, name: str | None) -> dict[str, Any]:
    return {what: name} if name else {}
