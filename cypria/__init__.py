"""Cypria from Python: start tests, follow them, act on their verdicts.

``Client`` needs the standard library alone; ``AsyncClient`` needs aiohttp. See docs/python-client.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cypria._asynchronous import AsyncClient
    from cypria._blocking import Client
    from cypria._patience import Retry
    from cypria.errors import (
        ApiError,
        Conflict,
        ConnectionFailed,
        CypriaError,
        Gone,
        InvalidRequest,
        NoAnswerInTime,
        NotFound,
        NoVerdictYet,
        PermissionDenied,
        RateLimited,
        ServerUnavailable,
        SettingsError,
        Unauthenticated,
        UnexpectedAnswer,
    )
    from cypria.types import Event, Report, Status, Test, Variant, Verdict

__all__ = [
    "ApiError", "AsyncClient", "Client", "Conflict", "ConnectionFailed", "CypriaError", "Event", "Gone",
    "InvalidRequest", "NoAnswerInTime", "NoVerdictYet", "NotFound", "PermissionDenied", "RateLimited", "Report",
    "Retry", "ServerUnavailable", "SettingsError", "Status", "Test", "Unauthenticated", "UnexpectedAnswer", "Variant",
    "Verdict",
]  # fmt: skip

_PLACES = ("errors", "types", "_patience", "_blocking", "_asynchronous")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: most programs need one of the clients, and the command line neither."""
    if name in __all__:
        for place in _PLACES:
            module = import_module(f"cypria.{place}")
            if name in vars(module):
                globals()[name] = vars(module)[name]
                return globals()[name]
    raise AttributeError(f"module 'cypria' has no attribute '{name}'")
