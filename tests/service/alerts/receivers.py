"""Real receivers of alerts on loopback: an SMTP server, an HTTP endpoint that keeps what it got, a Pushgateway."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, web
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from schemas.v1.alerts import Alert
from services._runtime.nats_server import free_port
from services._runtime.settings_model import Settings
from services.alerts.settings import Channel, read
from tests.harness import eventually


def channel(environ: dict[str, str] | None = None, **destination: Any) -> Channel:
    settings = Settings.model_validate({"alerts": {"destinations": [destination]}})
    return read(settings, environ or {}).channels[0]


def an_alert(**fields: Any) -> Alert:
    return Alert.model_validate(
        {"incident": "t1.slow", "level": "CRITICAL", "title": "Too slow", "message": "p95 is 4 s", "at_ms": 1_000,
         "test_id": "t1", **fields}
    )  # fmt: skip


def certificate(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.test")])
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return cert_path, key_path


@dataclass
class Mail:
    sender: str
    recipients: list[str]
    message: EmailMessage
    encrypted: bool
    user: str | None


@dataclass
class MailServer:
    """``answers`` are given to DATA in turn instead of taking the message; ``unknown`` recipients are refused."""

    answers: list[str] = field(default_factory=list)
    unknown: tuple[str, ...] = ()
    mails: list[Mail] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        if address in self.unknown:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, session: Any, envelope: Any) -> str:
        if self.answers:
            return self.answers.pop(0)
        message: Any = message_from_bytes(envelope.original_content, policy=policy.default)
        auth = session.auth_data
        user = auth.login.decode() if isinstance(auth, LoginPassword) else None
        self.mails.append(
            Mail(envelope.mail_from, list(envelope.rcpt_tos), message, session.ssl is not None, user)
        )
        return "250 taken"

    @contextlib.asynccontextmanager
    async def running(
        self, tls: tuple[Path, Path] | None = None, login: tuple[str, str] | None = None, *, from_the_start: bool = False
    ) -> AsyncIterator["MailServer"]:
        """With ``tls`` and a login only what is encrypted, by STARTTLS or ``from_the_start``, may log in."""
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)

        def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: LoginPassword) -> AuthResult:
            known = login is not None and (data.login, data.password) == tuple(part.encode() for part in login)
            return AuthResult(success=known, auth_data=data, handled=known)

        def protocol() -> SMTP:
            return SMTP(
                self, hostname="mail.test", tls_context=None if from_the_start else context,
                require_starttls=context is not None and not from_the_start,
                authenticator=check if login else None, auth_required=login is not None,
                auth_require_tls=not from_the_start,
            )  # fmt: skip

        server = await asyncio.get_running_loop().create_server(
            protocol, "127.0.0.1", 0, ssl=context if from_the_start else None
        )
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    raw: bytes
    answered: int = 0
    at: float = field(default_factory=time.monotonic)

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw))


@dataclass
class Receiver:
    """Answers with what ``reply`` says of the n-th request (from 0): (status, JSON body, headers)."""

    reply: Callable[[int, Got], tuple[int, Any, dict[str, str]]] = lambda _n, _got: (200, {}, {})
    got: list[Got] = field(default_factory=list)
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Receiver"]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        got = Got(request.path, dict(request.headers), await request.read())
        status, body, headers = self.reply(len(self.got), got)
        got.answered = status
        self.got.append(got)
        return web.json_response(body, status=status, headers=headers)


@contextlib.contextmanager
def pushgateway() -> Iterator[str]:
    """Debian's Pushgateway; its URL."""
    binary = shutil.which("prometheus-pushgateway") or shutil.which("pushgateway")
    assert binary, "prometheus-pushgateway is not installed: run infra/install_debian.sh (as root), or `make test`"
    port = free_port()
    # Debian's keeps what was pushed in a file of the machine, which the next one would begin with.
    process = subprocess.Popen(
        [binary, f"--web.listen-address=127.0.0.1:{port}", "--persistence.file="], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


async def scrape(url: str) -> dict[str, float]:
    """Series of a Pushgateway by name and labels; empty while it does not answer."""
    try:
        async with ClientSession() as session, session.get(f"{url}/metrics") as response:
            text = await response.text()
    except (ClientError, OSError):
        return {}
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("cypria")]
    return {name: float(value) for name, _, value in lines}


async def until_up(url: str) -> None:
    async def up() -> bool:
        try:
            async with ClientSession() as session, session.get(f"{url}/-/ready") as response:
                return response.status == 200
        except (ClientError, OSError):
            return False

    await eventually(up)


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[str]:
    """Debian's Prometheus with this configuration; its URL."""
    binary = shutil.which("prometheus")
    assert binary, "prometheus is not installed: run infra/install_debian.sh (as root), or `make test`"
    path, port = folder / "prometheus.yml", free_port()
    path.write_text(config)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


async def queried(url: str, query: str) -> dict[str, float]:
    """What Prometheus answers to a query: values by test and level."""
    async with ClientSession() as session, session.get(f"{url}/api/v1/query", params={"query": query}) as response:
        found = (await response.json())["data"]["result"]
    return {f"{one['metric'].get('test_id')} {one['metric'].get('level', '')}".strip(): float(one["value"][1]) for one in found}
