"""The process of one subscriber: `python -m services.alerts.subscribers.host`, started by the alerts service.

JSON lines: first the subscriber's entry point and options, answered when it is made; then one call at a time, each
answered. Whatever foreign code prints goes to stderr, and it reads nothing from stdin, so that it cannot get between.
"""

import asyncio
import importlib
import inspect
import io
import json
import os
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from schemas.v1.integrations import CALLS, GiveUp, Subscriber

LINE_LIMIT = 16 << 20
_SHOWN = 300


def load(path: str, options: Mapping[str, Any]) -> Any:
    """The subscriber that ``package.module:attribute`` makes of the options. Raises whatever that raises."""
    module, _, attribute = path.partition(":")
    factory: Any = importlib.import_module(module)
    for part in attribute.split("."):
        factory = getattr(factory, part)
    return factory(dict(options))


def calls_of(subscriber: Any) -> list[str]:
    """The kinds of occasions that it has a method for."""
    found = []
    for kind in CALLS:
        method = getattr(subscriber, f"on_{kind}", None)
        inherited = getattr(type(subscriber), f"on_{kind}", None) is getattr(Subscriber, f"on_{kind}")
        if callable(method) and not inherited:
            found.append(kind)
    return found


class Host:
    """Answers on ``out``, a file descriptor that only it knows."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._subscriber: Any = None
        self._calls: list[str] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="subscriber")

    def answer(self, **fields: Any) -> None:
        """One line."""
        line = json.dumps(fields).encode() + b"\n"
        while line:
            line = line[os.write(self._out, line) :]

    def begin(self, line: bytes) -> bool:
        """Make the subscriber; whether there is one."""
        hello = json.loads(line)
        sys.path[:] = hello["path"]
        try:
            self._subscriber = load(hello["entry"], hello["options"])
            self._calls = calls_of(self._subscriber)
        except BaseException as exc:
            traceback.print_exc(limit=20)
            self.answer(ready=False, reason=_words(exc))
            return False
        self.answer(ready=True, calls=self._calls)
        return True

    async def call(self, line: bytes) -> None:
        """Make one call and say how it ended."""
        asked = json.loads(line)
        number, kind = asked["id"], asked["call"]
        if kind not in self._calls:
            self.answer(id=number, outcome="absent")
            return
        try:
            event = CALLS[kind].model_validate(asked["event"])
            method = getattr(self._subscriber, f"on_{kind}")
            if inspect.iscoroutinefunction(method):
                await method(event)
            else:
                result = await asyncio.get_running_loop().run_in_executor(self._thread, method, event)
                if inspect.isawaitable(result):
                    await result
        except GiveUp as exc:
            self.answer(id=number, outcome="gave_up", reason=_words(exc))
        except BaseException as exc:
            traceback.print_exc(limit=20)
            self.answer(id=number, outcome="raised", reason=_words(exc))
        else:
            self.answer(id=number, outcome="done")


def _words(exc: BaseException) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text[:_SHOWN]}" if text else type(exc).__name__


async def serve(given: int, out: int) -> None:
    """Until the other side closes ``given``, the descriptor that calls come from."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    pipe = os.fdopen(given, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    host = Host(out)
    if not host.begin(await reader.readline()):
        return
    while line := await reader.readline():
        await host.call(line)


def main() -> None:
    """Take both pipes away from whatever else runs in this process, then serve."""
    given, out = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    asyncio.run(serve(given, out))
    os._exit(0)  # a thread that foreign code blocks would keep the process


if __name__ == "__main__":
    main()
