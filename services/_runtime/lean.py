"""Libraries imported without what they would import only because it is there; before anything else imports them.

Both are used by nothing here, and take a fifth of the time that a service takes to start: nats-py has aiohttp for
WebSockets, structlog has rich for the tracebacks of a console.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Let an import of the library fail meanwhile, as where it is not installed."""
    modules: dict[str, Any] = sys.modules
    there = modules.get(name)
    modules[name] = None
    try:
        yield
    finally:
        if there is None:
            del modules[name]
        else:
            modules[name] = there


for _library, _not_needed in (("nats.aio.transport", "aiohttp"), ("structlog.dev", "rich")):
    with _without(_not_needed):
        importlib.import_module(_library)
