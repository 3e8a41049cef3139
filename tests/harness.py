"""Real parts for tests: a nats-server with all users and streams, settings for a service, waiting for conditions."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nats
import psutil
from pydantic import SecretStr

from infra.nats.users import PROVISION
from services._runtime import nats_server
from services._runtime.bus import Bus, GuardedClient
from services._runtime.provision import provision_bus
from services._runtime.server import die_with_parent
from services._runtime.settings_model import Settings


class NatsServer:
    """A real nats-server on a free loopback port that dies with this process."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.embedded = nats_server.prepare(data_dir, 0, power_safe=False)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.embedded.url

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.embedded.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )  # fmt: skip

    def kill(self, sig: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(sig)
        if sig in {signal.SIGKILL, signal.SIGTERM}:
            self.process.wait(15)

    async def provision(self) -> None:
        nc = await self.connect(PROVISION)
        try:
            await provision_bus(nc.jetstream(timeout=30), replicas=1, retention_days=90)
        finally:
            await nc.close()

    async def connect(self, user: str, **options: Any) -> nats.NATS:
        """A plain client as one of the users, once the server answers; its `flush` waits for all that was said."""
        client = GuardedClient(encrypted=False)
        async with asyncio.timeout(60):
            await client.connect(
                self.url, user=user, password=self.embedded.passwords[user], inbox_prefix=f"_INBOX.{user}",
                connect_timeout=2, reconnect_time_wait=0.1, max_reconnect_attempts=-1, error_cb=_quiet, **options,
            )  # fmt: skip
        return client

    def settings(self, service: str, **sections: Any) -> Settings:
        """Settings of a service connected as its own user; keyword arguments are sections of the file."""
        raw: dict[str, Any] = {"data_dir": str(self.data_dir), **sections}
        settings = Settings.model_validate(raw)
        settings.nats.servers = [self.url]
        settings.nats.user = service
        settings.nats.password = SecretStr(self.embedded.passwords[service])
        return settings

    @contextlib.asynccontextmanager
    async def bus(self, service: str, **sections: Any) -> Any:
        """A connected Bus of a service."""
        bus = Bus(self.settings(service, **sections), service)
        await bus.connect()
        try:
            yield bus
        finally:
            await bus.close()


async def _quiet(_exc: Exception) -> None:
    """Connection errors are expected while a server starts; the caller sees what matters."""


async def eventually(
    check: Callable[[], Any] | Callable[[], Awaitable[Any]], timeout_s: float = 60.0, every_s: float = 0.02
) -> Any:
    """Poll a condition until it is truthy; its value. Fails with the last value after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"condition not met in {timeout_s} s; last value: {value!r}"
        await asyncio.sleep(every_s)


def alive(pids: Iterable[int]) -> list[int]:
    """Those of the processes that have not ended."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may go while it is looked at
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder that others write to: what goes while it is looked at is left out."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()


def environment(**extra: str) -> dict[str, str]:
    """The process environment without Cypria's own variables and the width of a terminal, plus ``extra``."""
    own = ("CYPRIA_", "AB_TEST_", "APHRODITE_", "COLUMNS", "LINES")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    return {**clean, **extra}
