"""The bus over TLS: both kinds of connections, certificates of clients, and every server that must be refused."""

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest

from infra.nats.users import Tls, server_config
from services._runtime import nats_server
from services._runtime.bus import Bus, make_broker, request
from services._runtime.server import EXIT_CONFIG
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings
from services._runtime.settings_tls import NatsTls
from tests.certificates import CLIENT, Authority, Pair
from tests.harness import NatsServer, environment, eventually
from tests.system import ROOT


class TlsServer(NatsServer):
    """A nats-server over TLS; with ``wants`` only for clients of that authority."""

    def __init__(self, data_dir: Path, pair: Pair, authority: Authority, wants: Authority | None = None) -> None:
        super().__init__(data_dir)
        self.authority = authority
        self.own = authority.issue("tests", purpose=CLIENT)
        self.shows(pair, wants)

    def shows(self, pair: Pair, wants: Authority | None = None) -> None:
        """From its next start on."""
        files = Tls(str(pair.cert), str(pair.key), str(wants.ca) if wants else None)
        text = server_config(
            host="127.0.0.1", port=int(self.url.rsplit(":", 1)[1]), store_dir=str(self.data_dir / "nats" / "store"),
            passwords=self.embedded.passwords, sync_always=False, tls=files,
        )  # fmt: skip
        nats_server.write_private(self.data_dir / "nats" / "nats.conf", text)

    async def connect(self, user: str, **options: Any) -> nats.NATS:
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.load_cert_chain(self.own.cert, self.own.key)
        return await super().connect(user, tls=context, **options)

    def settings(self, service: str, **sections: Any) -> Settings:
        settings = super().settings(service, **sections)
        settings.nats.tls = NatsTls(ca_file=self.authority.ca, cert_file=self.own.cert, key_file=self.own.key)
        return settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def running(folder: Path, pair: Pair, authority: Authority, wants: Authority | None = None) -> AsyncIterator[TlsServer]:
    server = TlsServer(folder, pair, authority, wants)
    server.start()
    try:
        yield server
    finally:
        server.kill()


async def refused(settings: Settings) -> str:
    bus = Bus(settings, "router")
    try:
        async with asyncio.timeout(60):
            with pytest.raises(ConfigError) as caught:
                await bus.connect()
        return str(caught.value)
    finally:
        await bus.close()


async def test_both_connections_of_a_service_show_their_certificate_and_come_back(tmp_path: Path, authority: Authority) -> None:
    async with running(tmp_path, authority.issue("nats"), authority, wants=authority) as server:
        await server.provision()
        broker = make_broker(server.settings("metrics"), "metrics")

        @broker.subscriber("cypria.query.totals")
        async def answer(_body: bytes) -> bytes:
            return b"over TLS"

        async with server.bus("router") as bus, broker:
            await broker.start()

            async def asked() -> bool:
                try:
                    return bytes((await request(bus.nc, "cypria.query.totals", b"", 5)).data) == b"over TLS"
                except nats.errors.Error:
                    return False

            await eventually(asked)
            server.kill()
            server.start()
            await eventually(asked)
            assert bus.missing() is None


async def test_a_server_that_is_not_trusted_is_refused_with_the_file_and_the_reason(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    foreign = stranger.issue("foreign", purpose=CLIENT)
    cases: tuple[tuple[Pair, NatsTls, Authority | None, str], ...] = (
        (authority.issue("good"), NatsTls(ca_file=stranger.ca), None, f"nats.tls.ca_file {stranger.ca} must hold the authority"),
        (authority.issue("expired", days=(-3, -1)), NatsTls(ca_file=authority.ca), None, "(certificate has expired): renew it"),
        (authority.issue("elsewhere", "other.test"), NatsTls(ca_file=authority.ca), None,
         "name the server as its certificate does, or set nats.tls.hostname"),
        (stranger.issue("self"), NatsTls(), None, "set nats.tls.ca_file to the authority that signed it"),
        (authority.issue("wanting"), NatsTls(ca_file=authority.ca), authority, "it refuses us (certificate required)"),
        (authority.issue("picky"), NatsTls(ca_file=authority.ca, cert_file=foreign.cert, key_file=foreign.key), authority,
         f"it refuses the certificate of nats.tls.cert_file {foreign.cert} (unknown ca"),
    )  # fmt: skip
    for pair, own, wants, said in cases:
        async with running(tmp_path / pair.cert.stem, pair, authority, wants) as server:
            settings = server.settings("router")
            settings.nats.tls = own
            found = await refused(settings)
            assert said in found
            assert server.url in found
            if pair.cert.stem == "elsewhere":
                settings.nats.tls = NatsTls(ca_file=authority.ca, hostname="other.test")
                bus = Bus(settings, "router")
                await bus.connect()
                await bus.close()


async def test_of_several_servers_one_that_is_trusted_is_enough(tmp_path: Path, authority: Authority) -> None:
    ended = authority.issue("ended-one", days=(-3, -1))
    async with running(tmp_path / "bad", ended, authority) as bad, running(tmp_path / "good", authority.issue("good-one"), authority) as good:
        for _ in range(3):  # nats-py begins with any of them
            settings = good.settings("router")
            settings.nats.servers = [bad.url, good.url]
            bus = Bus(settings, "router")
            async with asyncio.timeout(60):
                await bus.connect()
            assert bus.missing() is None
            await bus.close()
        settings.nats.servers = [bad.url, bad.url.replace("127.0.0.1", "localhost")]
        assert (await refused(settings)).count("\n") == 1


async def test_a_server_without_tls_is_told_nothing(tmp_path: Path, authority: Authority) -> None:
    heard = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576,"auth_required":true}\r\n')
        heard.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        for tls, scheme in ((NatsTls(ca_file=authority.ca), "nats"), (None, "tls")):
            settings = Settings.model_validate({"nats": {"servers": [f"{scheme}://127.0.0.1:{port}"], "user": "router", "password": "SECRETMARK"}})
            settings.nats.tls = tls
            assert "it offers no TLS, so it is told no password" in await refused(settings)
            broker = make_broker(settings, "router")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await broker.connect()
    assert b"SECRETMARK" not in heard
    assert b"CONNECT" not in heard


async def test_a_certificate_that_ends_while_it_runs_is_told_and_its_successor_taken(tmp_path: Path, authority: Authority) -> None:
    good = authority.issue("running")
    async with running(tmp_path, good, authority) as server, server.bus("router") as bus:
        server.kill()
        server.shows(authority.issue("ended", days=(-2, -1)))
        server.start()
        await eventually(lambda: "certificate has expired): renew it" in (bus.missing() or ""))
        server.kill()
        server.shows(good)
        server.start()
        await eventually(lambda: bus.missing() is None)


@pytest.mark.parametrize("command", [["services.monitor"], ["services.cli", "provision"]])
async def test_a_process_says_so_and_is_not_started_again(tmp_path: Path, authority: Authority, command: list[str]) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    async with running(tmp_path, authority.issue("nats"), authority) as server:
        file = tmp_path / "cypria.yaml"
        file.write_text(
            f"nats: {{servers: ['{server.url}'], user: monitor, password: x, tls: {{ca_file: stranger/stranger.pem}}}}\n"
        )
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", *command, "--config", str(file)], capture_output=True, text=True,
            env=environment(PYTHONPATH=str(ROOT), CYPRIA_DATA_DIR=str(tmp_path)), cwd=ROOT, timeout=200, check=False,
        )  # fmt: skip
    assert done.returncode == EXIT_CONFIG, done.stderr
    assert f"nats.tls.ca_file {stranger.ca} must hold the authority that signed it" in done.stderr
    assert "Traceback" not in done.stderr
