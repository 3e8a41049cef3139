"""ClickHouse over TLS: an authority of one's own, certificates of clients, and every certificate that must be refused."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import clickhouse_connect
import pytest

from services._runtime.settings import ConfigError
from services._runtime.settings_tls import ClientTls
from services.metrics.adapters.clickhouse import AWAY, ClickHouse, UntrustedError
from services.metrics.adapters.clickhouse_http import Front
from services.metrics.provision import provision_clickhouse
from tests.certificates import CLIENT, Authority, Pair


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def server(folder: Path, pair: Pair, wants: Authority | None = None) -> AsyncIterator[int]:
    """A ClickHouse over TLS on the real engine; its port. With ``wants`` only for clients of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if wants:
        context.load_verify_locations(wants.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    client = clickhouse_connect.get_client(dsn=f"chdb://{folder / 'server'}")
    client.command("CREATE DATABASE IF NOT EXISTS other")
    front = Front(str(folder / "server"), "other", "cypria", "secret", writable=True)
    try:
        yield await front.start("127.0.0.1", 0, context)
    finally:
        await front.stop()
        client.close()


def dsn(port: int, host: str = "127.0.0.1") -> str:
    return f"clickhouses://cypria:secret@{host}:{port}/cypria"


async def test_tables_are_made_and_asked_over_tls_with_a_clients_certificate(tmp_path: Path, authority: Authority) -> None:
    own = authority.issue("metrics", purpose=CLIENT)
    secured = ClientTls(ca_file=authority.ca, cert_file=own.cert, key_file=own.key)
    async with server(tmp_path, authority.issue("clickhouse"), wants=authority) as port:
        done = await asyncio.to_thread(provision_clickhouse, dsn(port), 90, 5, secured)
        assert any("applied" in line for line in done)
        engine = ClickHouse(dsn(port), secured)
        try:
            rows = await engine.read(lambda client: client.query("SELECT count() FROM cypria.window_cells").result_rows)
            assert rows == [(0,)]
        finally:
            await asyncio.to_thread(engine.close)


async def test_what_is_not_trusted_is_refused_with_the_file_and_the_reason(tmp_path: Path, authority: Authority) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    own = stranger.issue("metrics", purpose=CLIENT)
    trusting = ClientTls(ca_file=authority.ca)
    cases = (
        (authority.issue("good"), ClientTls(ca_file=stranger.ca), None, f"clickhouse.tls.ca_file {stranger.ca} must hold the authority"),
        (authority.issue("expired", days=(-3, -1)), trusting, None, "certificate has expired): renew it"),
        (authority.issue("elsewhere", "other.test"), trusting, None, "name the server as its certificate does"),
        (stranger.issue("self"), None, None, "set clickhouse.tls.ca_file to the authority that signed it"),
        (authority.issue("wanting"), trusting, authority, "it closes the connection: it may want another certificate"),
        (authority.issue("picky"), ClientTls(ca_file=authority.ca, cert_file=own.cert, key_file=own.key), authority,
         "it closes the connection: it may want another certificate than clickhouse.tls.cert_file"),
    )  # fmt: skip
    for pair, secured, wants, said in cases:
        async with server(tmp_path, pair, wants) as port:
            engine = ClickHouse(dsn(port), secured)
            try:
                with pytest.raises(UntrustedError) as caught:
                    await engine.read(lambda client: client.command("SELECT 1"))
            finally:
                await asyncio.to_thread(engine.close)
        assert said in str(caught.value)
        assert "secret" not in str(caught.value)
        assert isinstance(caught.value, AWAY)


def test_a_file_that_cannot_be_used_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clickhouse\.tls\.ca_file: .*/none cannot be read"):
        ClickHouse(dsn(8443), ClientTls(ca_file=tmp_path / "none"))
