"""The whole system over TLS: bus and edge, with certificates of clients, and what those see who do not fit in."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import CLIENT, Authority, Pair
from tests.e2e.conftest import engine_config
from tests.fakes.openai_server import FakeOpenAI
from tests.harness import environment, eventually
from tests.integration.test_nats_tls import TlsServer
from tests.system import ROOT, System

CHAT: dict[str, Any] = {"model": "stable", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


class TlsSystem(System):
    """A system whose edge speaks TLS; its client shows a certificate."""

    def __init__(self, folder: Path, config: dict[str, Any], authority: Authority, own: Pair) -> None:
        super().__init__(folder, config)
        self.authority = authority
        self.own = own
        self.client = httpx.AsyncClient(base_url=self.url, timeout=40, verify=self.trusting(own))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def trusting(self, own: Pair | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.ca)
        if own:
            context.load_cert_chain(own.cert, own.key)
        return context

    async def cypria(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """(exit status, stdout, stderr) of a command that trusts the authority and shows a certificate."""
        known = {
            "CYPRIA_URL": self.url, "CYPRIA_API_KEY": self.key, "CYPRIA_CA_FILE": str(self.authority.ca),
            "CYPRIA_CERT_FILE": str(self.own.cert), "CYPRIA_KEY_FILE": str(self.own.key),
        }  # fmt: skip
        chosen = {name: value for name, value in {**known, **variables}.items() if value}
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "services.cli", *arguments], capture_output=True, text=True, cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), **chosen), timeout=200, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def system(
    tmp_path: Path, authority: Authority, upstreams: tuple[FakeOpenAI, FakeOpenAI]
) -> AsyncIterator[TlsSystem]:
    edge, bus = authority.issue("edge"), authority.issue("services", purpose=CLIENT)
    server = TlsServer(tmp_path / "bus", authority.issue("nats"), authority, wants=authority)
    server.start()
    config = engine_config(
        *upstreams,
        nats={
            "servers": [server.url], "credentials_file": str(tmp_path / "bus" / "nats" / "passwords.json"),
            "tls": {"ca_file": str(authority.ca), **bus.as_setting()},
        },
        http={"tls": {**edge.as_setting(), "client_ca_file": str(authority.ca)}},
    )  # fmt: skip
    system = TlsSystem(tmp_path, config, authority, authority.issue("ops", purpose=CLIENT))
    try:
        await system.start()
        yield system
    except BaseException:
        sys.stderr.write(system.log.read_text()[-6000:])
        raise
    finally:
        await system.client.aclose()
        await asyncio.to_thread(system.stop)
        server.kill()


@pytest.mark.timeout(420)  # a shell starts some fifteen times
async def test_everything_works_over_tls_and_strangers_are_kept_out(system: TlsSystem, tmp_path: Path) -> None:
    await eventually(lambda: [one for one in system.logs() if one["event"] == "ready" and one["url"] == system.url])
    await _serves(system)
    await _tells_events(system)
    await _wants_a_certificate(system, tmp_path)
    await _is_asked_from_the_shell(system, tmp_path)
    await _takes_up_a_new_certificate(system)


async def _serves(system: TlsSystem) -> None:
    test_id = await system.start_test(traffic_split_percent=50)
    whole = await system.client.post("/v1/chat/completions", json=CHAT)
    assert (whole.status_code, whole.headers["x-ab-test-id"]) == (200, test_id)
    async with system.client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as streamed:
        assert streamed.status_code == 200
        assert [line async for line in streamed.aiter_lines() if line][-1] == "data: [DONE]"
    large = await system.client.post("/v1/chat/completions", json={**CHAT, "pad": "x" * (4 << 20)})
    assert large.status_code == 200
    refused = await system.client.post("/v1/chat/completions", content=b"x" * (11 << 20))
    assert refused.status_code == 413
    await eventually(lambda: _counted(system, test_id), 60, 0.2)
    await system.api("POST", "stop")


async def _counted(system: TlsSystem, test_id: str) -> bool:
    figures = (await system.status(test_id))["metrics"] or {}
    return sum(one["request_count"] for one in figures.values()) == 3


async def _tells_events(system: TlsSystem) -> None:
    async with system.client.stream("GET", "/v1/ab-testing/events") as events:
        lines = events.aiter_lines()
        started = await system.start_test()
        async with asyncio.timeout(60):
            assert [line async for line in _until(lines, started)]
    await system.api("POST", "stop")


async def _until(lines: AsyncIterator[str], word: str) -> AsyncIterator[str]:
    async for line in lines:
        if word in line:
            yield line
            return


async def _wants_a_certificate(system: TlsSystem, tmp_path: Path) -> None:
    key = {"Authorization": f"Bearer {system.key}"}
    async with httpx.AsyncClient(base_url=system.url, verify=system.trusting(), headers=key) as nameless:
        for path in ("/health", "/ready", "/metrics"):  # probes have none
            assert (await nameless.get(path)).status_code == 200
        for method, path in (("GET", "/v1/ab-testing/status"), ("POST", "/v1/chat/completions"), ("GET", "/docs"), ("GET", "/health/")):
            reply = await nameless.request(method, path, json=CHAT if method == "POST" else None)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "client_certificate_required"), path
    stranger = Authority(tmp_path / "stranger", "stranger")
    for own in (stranger.issue("foreign", purpose=CLIENT), system.authority.issue("past", purpose=CLIENT, days=(-3, -1)),
                system.authority.issue("not-a-client")):  # fmt: skip
        async with httpx.AsyncClient(base_url=system.url, verify=system.trusting(own), headers=key) as client:
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                await client.get("/health")
    with socket.create_connection(("127.0.0.1", system.port)) as plain:
        plain.settimeout(60)
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        said = b""
        with contextlib.suppress(ConnectionResetError):
            said = plain.recv(1000)
        assert b"HTTP" not in said
    assert (await system.client.get("/health")).status_code == 200


async def _is_asked_from_the_shell(system: TlsSystem, tmp_path: Path) -> None:
    status, shown, said = await system.cypria("status", "--json")
    assert (status, json.loads(shown or "{}").get("test_id", "")) == (0, None), said
    key = tmp_path / "key"
    key.write_text(system.key + "\n")
    secret = {"CYPRIA_API_KEY": "", "CYPRIA_API_KEY_FILE": str(key)}
    status, shown, said = await system.cypria("load", "stable", "--rate", "20", "--seconds", "0.2", "--json", **secret)
    assert (status, json.loads(shown or "{}").get("by_status")) == (0, {"200": 4}), shown + said
    status, shown, said = await system.cypria("doctor", "--data-dir", str(system.data_dir), "--json")
    checks = {check["name"]: check for check in json.loads(shown)["checks"]}
    assert (status, checks["process router"]["state"]) == (0, "ok"), shown + said
    stranger = tmp_path / "stranger" / "stranger.pem"
    for variables, expected, words in (
        ({"CYPRIA_CA_FILE": str(stranger)}, 1, f"CYPRIA_CA_FILE {stranger} must hold the authority that signed it"),
        ({"CYPRIA_CA_FILE": ""}, 1, "set CYPRIA_CA_FILE to the authority that signed it"),
        ({"CYPRIA_CA_FILE": str(tmp_path / "none")}, 2, f"CYPRIA_CA_FILE: {tmp_path / 'none'} cannot be read"),
        ({"CYPRIA_KEY_FILE": ""}, 2, "CYPRIA_CERT_FILE and CYPRIA_KEY_FILE go together"),
        ({"CYPRIA_CERT_FILE": "", "CYPRIA_KEY_FILE": ""}, 1, "this edge wants a client's certificate"),
        ({"CYPRIA_URL": system.url.replace("https", "http")}, 1, "CYPRIA_URL begins with https://"),
        ({"CYPRIA_URL": system.url.replace("127.0.0.1", "localhost")}, 1, "name the server as its certificate does"),
        ({"CYPRIA_API_KEY_FILE": str(key)}, 2, "CYPRIA_API_KEY and CYPRIA_API_KEY_FILE are both set"),
    ):
        status, shown, said = await system.cypria("status", **variables)
        assert (status, shown, words in said, "Traceback" in said) == (expected, "", True, False), said
    status, shown, _ = await system.cypria("load", "stable", "--rate", "20", "--seconds", "0.1", CYPRIA_CA_FILE=str(stranger))
    assert (status, "must hold the authority that signed it" in shown) == (1, True), shown


async def _takes_up_a_new_certificate(system: TlsSystem) -> None:
    def shown() -> bytes:
        with socket.create_connection(("127.0.0.1", system.port)) as sock, system.trusting(system.own).wrap_socket(
            sock, server_hostname="127.0.0.1"
        ) as secured:
            return secured.getpeercert(binary_form=True) or b""

    first = await asyncio.to_thread(shown)
    renewed = system.authority.issue("edge-renewed")
    for new, old in ((renewed.key, "edge.key"), (renewed.cert, "edge.crt")):
        os.replace(new, new.with_name(old))
    await eventually(lambda: asyncio.to_thread(lambda: shown() != first), 60, 0.2)
    assert (await system.client.get("/v1/ab-testing/status")).status_code == 200
