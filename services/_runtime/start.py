"""How the process of a service begins. Imports nothing that takes long."""

import contextlib
import gc
import importlib
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import much with the garbage collector at rest, and let it leave alone for good what there is then.

    Modules stay. Looking through them again and again while more of them come is up to a fifth of importing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def main(service: str) -> None:
    """`python -m services.NAME [--config FILE]`."""
    with importing():
        app = importlib.import_module(f"services.{service}.app")
        server = importlib.import_module("services._runtime.server")
    server.main(service, app.build_app, **getattr(app, "UVICORN_OPTIONS", {}))
