"""`cypria up`: the whole system on embedded parts, each service a process of its own, kept alive.

Dead processes come back with capped backoff; SIGTERM and SIGINT stop everything in order within ten seconds;
children die with this process however it dies.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services._runtime import tls, variables
from services._runtime.bus import TRANSIENT
from services._runtime.clock import monotonic
from services._runtime.server import CONFIG_FILE, EXIT_CONFIG, SUPERVISED, die_with_parent
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 1.5
STABLE_AFTER_S = 20.0
_CODE = str(Path(__file__).resolve().parents[2])
"""The folder that holds the package `services`."""


@dataclass
class Child:
    """One supervised process. ``stop_s`` is how long it may take to stop before it is killed."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    stop_s: float = 3.0
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    stopping: bool = False
    task: asyncio.Task[None] | None = None
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    async def spawn(self) -> None:
        """Start the process; it is killed when this process dies."""
        parent = os.getpid()
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            env=dict(self.environment),
            stdin=asyncio.subprocess.DEVNULL,
            # a child that execs (nats-server) cannot ask for this itself
            preexec_fn=lambda: die_with_parent(parent=parent),
            start_new_session=True,
        )
        log.info("process_started", process=self.name, pid=self.process.pid, restarts=self.restarts)

    async def keep_alive(self) -> None:
        """Restart the process whenever it dies, until `stop`; a refused configuration ends it."""
        delay = BACKOFF_FIRST_S
        while not self.stopping:
            started = monotonic()
            if self.process is None or self.process.returncode is not None:
                await self.spawn()
            assert self.process is not None
            code = await self.process.wait()
            if self.stopping:
                return
            if code == EXIT_CONFIG:
                log.error("process_refused_configuration", process=self.name)
                self.failed.set()
                return
            if monotonic() - started > STABLE_AFTER_S:
                delay = BACKOFF_FIRST_S
            log.error("process_died", process=self.name, status=code, restart_in_s=delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, BACKOFF_CAP_S)
            self.restarts += 1

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after ``stop_s``."""
        self.stopping = True
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # In this order: sending looks whether the process has ended, and would take its exit status.
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self.stop_s):
                    await process.wait()
            except TimeoutError:
                log.warning("process_killed", process=self.name, after_s=self.stop_s)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self.task:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task


class Supervisor:
    """Starts groups of children in order and stops them in the opposite order."""

    def __init__(self) -> None:
        self._groups: list[list[Child]] = []

    @property
    def children(self) -> list[Child]:
        """Every child, in the order of starting."""
        return [child for group in self._groups for child in group]

    async def start(self, group: list[Child]) -> None:
        """Start a group and keep it alive. Groups started first are stopped last."""
        self._groups.append(group)
        for child in group:
            await child.spawn()
            child.task = asyncio.create_task(child.keep_alive(), name=f"keep-{child.name}")

    async def stop(self) -> None:
        """Stop the groups, last started first; the members of one group at the same time."""
        for group in reversed(self._groups):
            for child in group:
                child.stopping = True
        for group in reversed(self._groups):
            await asyncio.gather(*(child.stop() for child in group))

    async def wait_for_refusal(self) -> str:
        """Return the name of the first child that refused its configuration."""
        waits = {asyncio.create_task(child.failed.wait()): child.name for child in self.children}
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return waits[done.pop()]


def service_child(
    service: str, index: int, *, config: str | None, settings: Mapping[str, str], stop_s: float = 3.0,
    environ: Mapping[str, str] | None = None,
) -> Child:  # fmt: skip
    """A service as a child process: ``settings`` are variables over the file and over ``environ`` (this process's)."""
    # What is set here counts: a file in the place of the same variable would contradict it.
    given = os.environ if environ is None else environ
    inherited = {k: v for k, v in given.items() if k.removesuffix(variables.SUFFIX) not in settings}
    environment = {**inherited, **settings, SUPERVISED: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    # The same code as this process: a folder `services` or `schemas` where it was started must not take its place.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (_CODE, os.environ.get("PYTHONPATH"))))
    if config:
        environment[CONFIG_FILE] = config
    name = service if index == 0 else f"{service}-{index + 1}"
    return Child(name, [sys.executable, "-P", "-m", f"services.{service}"], environment, stop_s=stop_s)


async def http_get(
    host: str, port: int, path: str, timeout_s: float = 1.0, certificate: Path | None = None
) -> tuple[int, dict[str, object]]:
    """Status and JSON body of a local GET; (0, {}) when nobody answers. ``certificate``: what a server over TLS has."""
    try:
        secured = tls.pinned_context(certificate) if certificate else None
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=secured)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            raw = await reader.read()
            writer.close()
    except TRANSIENT:
        return 0, {}
    head, _, body = raw.partition(b"\r\n\r\n")
    try:
        return int(head.split(b" ", 2)[1]), json.loads(body)
    except (IndexError, ValueError):
        return 0, {}
