"""Which version of Cypria this is."""

import importlib.metadata


def version() -> str:
    """As it was installed; ``unknown`` where it runs without having been."""
    try:
        return importlib.metadata.version("cypria")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
