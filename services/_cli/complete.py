"""Names for the shell to complete: asked of the edge, briefly; where it does not answer there are none, and no word."""

import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

_PATIENCE_S = 1.5
_TESTS = 20


def tests(incomplete: str) -> list[str]:
    """Tests that run."""
    return _fitting(incomplete, _asked("status").get("running_tests") or [])


def history(incomplete: str) -> list[tuple[str, str]]:
    """Tests that have ended, the newest first, with what was decided."""
    ended = _asked(f"history?limit={_TESTS}").get("tests") or []
    found = [(str(one.get("test_id")), str(one.get("decision"))) for one in ended]
    return [pair for pair in found if pair[0].startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Models that are known."""
    return _fitting(incomplete, (str(one.get("name")) for one in _asked("models").get("models") or []))


def keys(incomplete: str) -> list[str]:
    """Keys by name."""
    return _fitting(incomplete, (str(one.get("name")) for one in _asked("keys").get("keys") or []))


def _fitting(incomplete: str, names: Any) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _asked(what: str) -> dict[str, Any]:
    """The edge's answer; empty where there is none. A shell that completes is no place for an error."""
    with _silent(), contextlib.suppress(Exception, SystemExit):
        from urllib.request import HTTPSHandler, Request, build_opener

        from services._cli import api

        context = api.tls_context()
        handlers = [] if isinstance(context, bool) else [HTTPSHandler(context=context)]
        request = Request(f"{api.url()}/v1/ab-testing/{what}", headers={"Authorization": f"Bearer {api.key() or ''}"})  # noqa: S310
        with build_opener(*handlers).open(request, timeout=_PATIENCE_S) as response:
            found = json.loads(response.read())
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield
