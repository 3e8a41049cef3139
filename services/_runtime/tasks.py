"""Ending background tasks for certain."""

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.5


async def end(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks and wait until they have ended, whatever they end with.

    A cancellation can get lost: `asyncio.wait_for` of Python 3.11, which nats-py uses, swallows one that arrives
    together with its result. So tasks are cancelled again until they are gone.
    """
    left = {task for task in tasks if task is not None}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # marks it as seen: these tasks report their failures themselves


async def finish(tasks: "Iterable[asyncio.Task[Any]]", within_s: float) -> None:
    """Give tasks so long, then end those that are left."""
    waiting = set(tasks)
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=within_s)
        await end(*late)
