"""A ClickHouse server that can be killed: in a container where a Docker engine answers, else the HTTP front over chDB."""

import functools
import signal
import sys
from pathlib import Path
from typing import Protocol

from services._runtime.nats_server import free_port
from tests.service.metrics.process import Process

IMAGE = "clickhouse/clickhouse-server:25.8"
USER, PASSWORD = "cypria", "secret"


class Server(Protocol):
    """What tests do with it; ``dsn`` stays the same over kills."""

    dsn: str

    def start(self) -> None:
        """Start it, the first time or again."""

    def kill(self) -> object:
        """Kill -9."""


class Front(Process):
    """A writable HTTP front over a chDB directory on a fixed port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = [sys.executable, "-m", "tests.service.metrics.front_process", str(folder / "server"), str(port)]
        super().__init__(command, folder / "server.log")
        self.dsn = _dsn(port)


class Container:
    """The real server; its files live in the container and so survive a kill. Ryuk removes it in the end."""

    def __init__(self) -> None:
        from testcontainers.core.container import DockerContainer

        port = free_port()
        self.dsn = _dsn(port)
        self._started = False
        self._container = (
            DockerContainer(IMAGE).with_bind_ports(8123, port).with_env("CLICKHOUSE_DB", "other")
            .with_env("CLICKHOUSE_USER", USER).with_env("CLICKHOUSE_PASSWORD", PASSWORD)
            .with_env("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT", "1")
        )  # fmt: skip

    def start(self) -> None:
        if self._started:
            self._container.get_wrapped_container().start()
        else:
            self._container.start()
            self._started = True

    def kill(self) -> None:
        self._container.get_wrapped_container().kill(signal=int(signal.SIGKILL))


def clickhouse_server(folder: Path) -> Server:
    """The best that this machine has."""
    return Container() if docker_answers() else Front(folder)


@functools.cache
def docker_answers() -> bool:
    """Whether there is a Docker engine."""
    import docker
    from docker.errors import DockerException

    try:
        return bool(docker.from_env(timeout=3).ping())
    except DockerException:
        return False


def _dsn(port: int) -> str:
    return f"clickhouse://{USER}:{PASSWORD}@127.0.0.1:{port}/cypria"
