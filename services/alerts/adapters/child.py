"""A process with foreign code: one call at a time, over pipes, ended when it takes too long or grows too large."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from services._runtime.clock import monotonic
from services._runtime.server import die_with_parent
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

START_S = 30.0
"""Importing foreign code may take this long."""
_LOOK_S = 0.5
_LINE_LIMIT = 16 << 20
_SAID = 500
_SAID_PER_MINUTE = 200
_NICE = 5
_PASSED = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Variables that a child gets; those of this process have passwords among them."""


class ChildError(RuntimeError):
    """The call has no answer; the message says why. The process is gone, and made again at the next call."""


class Child:
    """``hello`` is the first line that a new process gets, answered with ``ready``.

    ``hide`` takes secrets out of what it says.
    """

    def __init__(
        self, name: str, module: str, hello: Mapping[str, Any], *, memory_mb: int, environment: Mapping[str, str],
        hide: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._name = name
        self._command = [sys.executable, "-P", "-m", module]  # nothing from the working directory
        self._hello = hello
        self._memory = memory_mb << 20
        self._environment = environment
        self._hide = hide
        self._lock = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._number = 0
        self.starts = 0
        self.calls: list[str] = []

    @property
    def pid(self) -> int | None:
        """Of the present process."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def ensure(self) -> None:
        """Have a process that is ready. Raises ChildError."""
        async with self._lock:
            await self._ready()

    async def ask(self, call: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The answer to one call. Raises ChildError."""
        async with self._lock:
            await self._ready()
            self._number += 1
            try:
                return await self._exchange({"id": self._number, **call}, timeout_s, number=self._number)
            finally:
                if self._size() > self._memory:
                    log.warning("subscriber_too_large", integration=self._name, limit_mb=self._memory >> 20)
                    await self._end()

    async def close(self) -> None:
        """End the process, whatever it does."""
        await self._end()

    async def _ready(self) -> None:
        if self.pid is not None:
            return
        await self._end()
        self.starts += 1
        parent = os.getpid()

        def before() -> None:
            die_with_parent(signal.SIGKILL, parent)
            os.nice(_NICE)

        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, limit=_LINE_LIMIT, env=self._variables(), start_new_session=True,
                preexec_fn=before,
            )  # fmt: skip
        except OSError as exc:
            raise ChildError(f"the subscriber's process could not be started ({exc.strerror})") from None
        self._pump = asyncio.create_task(self._listen(self._process.stderr))
        answer = await self._exchange(self._hello, START_S)
        if not answer.get("ready"):
            await self._end()
            raise ChildError(f"the subscriber could not be made: {self._hide(str(answer.get('reason')))}")
        self.calls = [str(call) for call in answer.get("calls", [])]

    async def _exchange(
        self, message: Mapping[str, Any], timeout_s: float, number: int | None = None
    ) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: PT018
        answer = asyncio.create_task(self._answer(process, json.dumps(message).encode() + b"\n", number))
        try:
            found = await self._within(answer, timeout_s)
        except ChildError:
            await self._end()
            raise
        except asyncio.CancelledError:
            self._kill()  # it may be in the middle of the call
            _let_go(process)
            self._process = self._pump = None
            raise
        except (OSError, ValueError):
            await self._end()
            raise ChildError("the line to its process broke: the log has what it said last") from None
        finally:
            answer.cancel()
        if found is None:
            raise ChildError(await self._how_it_ended())
        return found

    async def _within(
        self, answer: "asyncio.Task[dict[str, Any] | None]", timeout_s: float
    ) -> dict[str, Any] | None:
        end = monotonic() + timeout_s
        while not answer.done():
            if monotonic() >= end:
                raise ChildError(f"no answer within {timeout_s:g} s, its process was ended")
            if self._size() > self._memory:
                raise ChildError(f"it took more than {self._memory >> 20} MiB, its process was ended")
            await asyncio.wait({answer}, timeout=min(_LOOK_S, max(0.0, end - monotonic())))
        return answer.result()

    @staticmethod
    async def _answer(
        process: asyncio.subprocess.Process, line: bytes, number: int | None
    ) -> dict[str, Any] | None:
        """The answer; None when the process has ended. What is none is passed over."""
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line)
            await process.stdin.drain()
        while said := await process.stdout.readline():
            with contextlib.suppress(ValueError):
                answer = json.loads(said)
                if isinstance(answer, dict) and (answer.get("id") == number if number else "ready" in answer):
                    return answer
        return None

    async def _how_it_ended(self) -> str:
        process = self._process
        if process is None:  # closed in the middle of the call
            return "its process was ended"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await process.wait()
        code = process.returncode
        await self._end()
        if code is None:
            return "its process closed the line"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with status {code}"

    async def _end(self) -> None:
        process, pump = self._process, self._pump
        self._kill()
        self._process = self._pump = None
        if process is not None:
            await process.wait()
        if pump is not None:
            await asyncio.wait({pump}, timeout=1)
            pump.cancel()
        if process is not None:
            _let_go(process)

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _size(self) -> int:
        if self.pid is not None:
            with contextlib.suppress(psutil.Error):
                return int(psutil.Process(self.pid).memory_info().rss)
        return 0

    def _variables(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        return {**passed, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **self._environment}

    async def _listen(self, stderr: asyncio.StreamReader | None) -> None:
        """What it prints goes into the log, so much in a minute; the rest is read and dropped."""
        assert stderr is not None
        minute, said = 0.0, 0
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # longer than the limit: its beginning was dropped
                continue
            if not line:
                return
            if monotonic() - minute > 60:
                minute, said = monotonic(), 0
            said += 1
            if said <= _SAID_PER_MINUTE:
                text = self._hide(line.decode(errors="replace").rstrip()[:_SAID])
                log.info("subscriber_said", integration=self._name, text=text)
            elif said == _SAID_PER_MINUTE + 1:
                log.warning("subscriber_says_too_much", integration=self._name, lines_a_minute=_SAID_PER_MINUTE)


def _let_go(process: asyncio.subprocess.Process) -> None:
    """Close the pipes at once: what ended with something unread would keep them until the loop is gone."""
    with contextlib.suppress(ProcessLookupError):
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no other way
