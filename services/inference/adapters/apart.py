"""Blocking work in a thread that nobody has to wait for at the end."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def apart(work: Callable[[], T], name: str = "apart") -> T:
    """The result of ``work``, run in a thread of its own.

    Unlike asyncio's own threads, one that hangs (a disk that is away, a library that waits) does not keep the process
    from ending. Cancelled, it leaves the thread to itself. Raises what ``work`` raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        try:
            result, error = work(), None
        except Exception as exc:
            result, error = None, exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the loop has ended meanwhile, and whoever waited with it

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
