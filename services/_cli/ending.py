"""Work that takes away what it has made, however it is ended: Ctrl-C, SIGTERM, or a terminal that is closed."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(Exception):
    """The work was ended by a signal, and has taken away what it made; ``status`` is the command's exit status."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"ended by {number.name}")
        self.status = 128 + number


async def orderly(work: Coroutine[Any, Any, T]) -> T:
    """Do it to its end. A signal cancels it; what it does about that is waited for. Raises EndedError then.

    Another Ctrl-C skips what is being waited for; other signals that follow change nothing: a terminal that closes, and
    who stops a service, send several.
    """
    task, loop, ended = asyncio.current_task(), asyncio.get_running_loop(), list[signal.Signals]()
    terminals = [file for file in (sys.stdout, sys.stderr) if file.isatty()]

    def end(number: signal.Signals) -> None:
        if number == signal.SIGHUP:  # whatever is written to a terminal that is gone fails
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for file in terminals:
                os.dup2(nowhere, file.fileno())
            os.close(nowhere)
        if task is not None and (not ended or number == signal.SIGINT):
            task.cancel()
        ended.append(number)

    for number in _ENDS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            loop.add_signal_handler(number, end, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not ended:
            raise
        raise EndedError(ended[0]) from None
    finally:
        for number in _ENDS:
            loop.remove_signal_handler(number)


async def whole(call: Awaitable[T]) -> T:
    """Its answer. Where this is cancelled, the answer is still waited for: what was asked for may come about."""
    asked = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(asked)
    except asyncio.CancelledError:
        await asyncio.wait({asked})
        if not asked.cancelled():
            asked.exception()  # whoever undoes it looks by itself
        raise
