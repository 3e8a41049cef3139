"""The chart's pods as processes of this machine: what each container runs, with its variables and files, on free ports."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import nats

from infra import make_secrets
from services._runtime.nats_server import find_binary, free_port
from tests.charts import NAMESPACE, RELEASE, Pod, pods, render
from tests.containers import Program, program, stages
from tests.harness import environment, eventually
from tests.system import ROOT


class Running(Program):
    """A pod's process."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        super().__init__(command, env, folder / f"{name}.log")
        self.name, self.folder = name, folder
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self, client: httpx.AsyncClient) -> bool:
        assert self.process
        assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()[-3000:]}"
        with contextlib.suppress(httpx.TransportError):
            return (await client.get(f"{self.url}/ready")).status_code == 200
        return False


class Cluster:
    """A release of the chart; ``values`` are over its defaults. Addresses alone are this machine's."""

    def __init__(self, folder: Path, values: dict[str, Any], clickhouse_port: int) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        make_secrets.write(self.secrets)
        dsn = (self.secrets / "clickhouse-dsn").read_text()
        (self.secrets / "clickhouse-dsn").unlink()
        (self.secrets / "clickhouse-dsn").write_text(dsn.replace("@clickhouse:8123", f"@127.0.0.1:{clickhouse_port}"))
        self.objects = render(values)
        by_component = {pod.component: pod for pod in pods(self.objects)}
        self.bus = bus = by_component.pop("nats")
        self.nats_ports = [free_port() for _ in range(bus.replicas)]
        self.routes = [free_port() for _ in range(bus.replicas)]
        self.monitoring = [free_port() for _ in range(bus.replicas)]
        self.nats = [self._nats(bus, index) for index in range(bus.replicas)]
        self.provision = self._service(by_component.pop("provision"), 0)
        self.parts = {c: [self._service(pod, i) for i in range(pod.replicas)] for c, pod in by_component.items()}

    def _files(self, pod: Pod, name: str) -> dict[str, str]:
        """Paths in the container, and the same files here."""
        here = {}
        for path, content in pod.files(self.objects, self.secrets).items():
            file = content if isinstance(content, Path) else self.folder / name / Path(path).name
            if isinstance(content, str):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content)
            here[path] = str(file)
        return here

    def _environment(self, pod: Pod, index: int, files: dict[str, str], **instead: str) -> dict[str, str]:
        env = {name: files.get(value, value) for name, value in pod.environment(index).items() if name != "PATH"}
        env = {name: re.sub(r"secret:([\w-]+)", lambda key: (self.secrets / key[1]).read_text(), value) for name, value in env.items()}
        return environment(PYTHONPATH=str(ROOT), **{**env, **instead})

    def _nats(self, pod: Pod, index: int) -> Running:
        name = f"{RELEASE}-nats-{index}"
        files = self._files(pod, name)
        config = Path(files["/etc/nats/nats.conf"])
        text = config.read_text()
        for there, here in {
            "0.0.0.0:4222": f"127.0.0.1:{self.nats_ports[index]}", "0.0.0.0:6222": f"127.0.0.1:{self.routes[index]}",
            "http: 0.0.0.0:8222": f"http: 127.0.0.1:{self.monitoring[index]}", "store_dir: /data": f"store_dir: {self.folder / name / 'store'}",
            "/tmp/nats.pid": str(self.folder / name / "nats.pid"),
        }.items():  # fmt: skip
            assert there in text, there
            text = text.replace(there, here)
        config.write_text(text)
        container = pod.container
        assert container["command"] == ["nats-server"]
        command = [find_binary(), *(files.get(argument, argument) for argument in container["args"])]
        env = self._environment(pod, index, files)
        for i, port in enumerate(self.routes):
            host = f"{RELEASE}-nats-{i}.{RELEASE}-nats.{NAMESPACE}.svc:6222"
            assert host in env["CYPRIA_ROUTE_URLS"], host
            env["CYPRIA_ROUTE_URLS"] = env["CYPRIA_ROUTE_URLS"].replace(host, f"127.0.0.1:{port}")
        return Running(name, command, env, self.folder)

    def _service(self, pod: Pod, index: int) -> Running:
        name = f"{pod.owner['metadata']['name']}-{index}"
        service, files, port = pod.component.split("-")[0], self._files(pod, name), free_port()
        servers = json.dumps([f"nats://127.0.0.1:{one}" for one in self.nats_ports])
        env = self._environment(
            pod, index, files, CYPRIA_DATA_DIR=str(self.folder / name / "data"), CYPRIA_NATS__SERVERS=servers,
            CYPRIA_HTTP__HOST="127.0.0.1", CYPRIA_OPS__HOST="127.0.0.1",
            **{"CYPRIA_HTTP__PORT" if service == "router" else "CYPRIA_OPS__PORT": str(port)},
        )  # fmt: skip
        one = Running(name, program([*stages()["service"].entrypoint, *pod.container["args"]]), env, self.folder)
        one.port = port
        return one

    @property
    def running(self) -> list[Running]:
        return [*self.nats, self.provision, *(one for some in self.parts.values() for one in some)]

    def secret(self, key: str) -> str:
        return (self.secrets / key).read_text().strip()

    async def start(self, client: httpx.AsyncClient) -> None:
        """Everything at once, as a cluster does."""
        for one in self.running:
            one.start()
        assert self.provision.process
        assert await asyncio.to_thread(self.provision.process.wait, 200) == 0, self.provision.log.read_text()[-2000:]
        for one in (one for some in self.parts.values() for one in some):
            await eventually(lambda o=one: o.ready(client), 150, 0.2)

    async def leader(self, stream: str) -> int:
        """The number of the nats-server that leads a stream, which all of them have."""
        nc = await nats.connect(
            [f"nats://127.0.0.1:{port}" for port in self.nats_ports], user="provision",
            password=self.secret("nats-provision"), inbox_prefix="_INBOX.provision",
        )  # fmt: skip
        try:
            info = await nc.jetstream(timeout=30).stream_info(stream)
        finally:
            await nc.close()
        assert info.config.num_replicas == len(self.nats)
        assert info.cluster
        return int(str(info.cluster.leader).rsplit("-", 1)[1])


@contextlib.asynccontextmanager
async def released(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    """The release, ready; and a client."""
    async with httpx.AsyncClient(timeout=40, limits=httpx.Limits(max_connections=200)) as client:
        try:
            await cluster.start(client)
            yield client
        finally:
            for one in cluster.running:
                one.kill()
