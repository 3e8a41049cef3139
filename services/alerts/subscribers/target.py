"""What a reference subscriber works on: an object of another package, named in the configuration."""

import importlib
import inspect
from collections.abc import Awaitable
from typing import Any


def target_of(options: dict[str, Any], methods: tuple[str, ...], example: str) -> Any:
    """The object that ``options["target"]`` (``package.module:attribute``) names.

    What has none of ``methods``, such as a class or a function, is called without arguments, or with the keyword
    arguments in ``options["arguments"]``.

    Raises ValueError where there is no target, TypeError where it lacks a method.
    """
    path = options.get("target")
    if not isinstance(path, str) or ":" not in path:
        raise ValueError(f"options.target: give the object as package.module:attribute, such as {example}")
    module, _, attribute = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if inspect.isclass(found) or not any(hasattr(found, name) for name in methods):
        found = found(**dict(options.get("arguments") or {}))
    for name in methods:
        if not callable(getattr(found, name, None)):
            raise TypeError(f"options.target: {path} has no method {name}")
    return found


async def settled(result: Any) -> Any:
    """The result of a method that may be async.

    Raises RuntimeError for an answer that is a dict with an ``error``, as orchestrators report failures.
    """
    if isinstance(result, Awaitable):
        result = await result
    if isinstance(result, dict) and result.get("error"):
        raise RuntimeError(str(result["error"]))
    return result
