"""The connection to NATS: options that survived kill -9, durable publishing, compare-and-set, dead letters."""

import asyncio
import base64
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import nats
from faststream import BaseMiddleware
from faststream.nats import NatsBroker
from faststream.nats.security import NatsSecurity, NatsUserPassword
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError, KeyWrongLastSequenceError, NotFoundError

from schemas import streams, subjects
from schemas.v1.alerts import DeadLetter
from services._runtime import tls
from services._runtime.clock import monotonic, now_ms
from services._runtime.settings import ConfigError
from services._runtime.settings_model import Settings, bare
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

WRONG_LAST_SEQUENCE = 10071
_OF_STREAMS = frozenset(pattern for stream in streams.STREAMS for pattern in stream.subjects)
TRANSIENT = (NatsError, asyncio.TimeoutError, OSError)
SECTION = "nats.tls"
_FROM_STREAM = b"\r\nNats-Stream:"
"""In the headers of a stored message that the server was asked for by sequence or subject."""


class PlainConnectionError(NatsError):  # type: ignore[misc]
    """The server offers no TLS where TLS was asked for."""

    def __str__(self) -> str:
        return "it offers no TLS, so it is told no password: give the server a certificate, or remove nats.tls and tls://"


class GuardedClient(Client):  # type: ignore[misc]
    """A client that, where TLS is asked for, says nothing to a server before the connection is encrypted.

    Left to itself it would take the server's word for whether it needs TLS, and send its password in the clear.
    """

    _transport: Any

    def __init__(self, *, encrypted: bool) -> None:
        super().__init__()
        self._encrypted = encrypted

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            # Nobody tells of the end of a connection whose handshake failed: nats-py would wait for it for ever.
            if self._encrypted and self._transport is not None:
                self._transport.close()
                self._transport = None
            raise

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """What a stream holds comes into inboxes only: elsewhere, somebody had the server send it there.

        A status in the headers of a stream's message is its sender's: nats-py would take it for the server's.
        """
        stored = bytes(reply).startswith(b"$JS.ACK.")
        if stored or (headers and _FROM_STREAM in headers):
            subscription = self._subs.get(sid)
            if subscription is not None and not subscription.subject.startswith(subjects.INBOX):
                name = bytes(subject).decode(errors="replace")
                log.warning("bus_delivery_refused", subject=name, to=subscription.subject)
                return
        if headers and stored and headers[8:9] == b" ":
            headers = headers[:8] + headers[max(headers.find(b"\r\n"), 8) :]
        await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_headers(self, headers: bytes) -> Any:
        """A sender writes its headers as it likes; where nats-py cannot read them, it would stop reading at all."""
        try:
            return await super()._process_headers(headers)
        except Exception as exc:
            log.warning("bus_headers_unreadable", error=repr(exc))
            return None

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 - so it is in nats-py
        """Until the server has taken in what was said. Twice: the first PING overtakes what nats-py has buffered."""
        await super().flush(timeout)
        await super().flush(timeout)

    def _connect_command(self) -> bytes:
        writer = getattr(self._transport, "_io_writer", None)
        if self._encrypted and (writer is None or writer.get_extra_info("ssl_object") is None):
            raise PlainConnectionError
        return bytes(super()._connect_command())


class GuardedBroker(NatsBroker):
    """A FastStream broker on a GuardedClient."""

    def __init__(self, *, encrypted: bool, **options: Any) -> None:
        super().__init__(**options)
        self._encrypted = encrypted

    async def _connect(self) -> Client:
        connection = GuardedClient(encrypted=self._encrypted)
        await connection.connect(**self._connection_kwargs)
        self.config.connect(connection)
        return connection

    async def start(self) -> None:
        """Subscribe, and wait until the server knows: whoever sees that we are ready may ask at once."""
        await super().start()
        with contextlib.suppress(*TRANSIENT):  # after a reconnect it is told its subscriptions again
            await (await self.connect()).flush(timeout=5)


class AnswersInInboxesOnly(BaseMiddleware[Any, Any]):
    """Drops questions that want their answer anywhere but in an inbox.

    The asker chooses the subject and the answerer publishes there with its own permissions: otherwise whoever may ask
    could write where only the answerer may.
    """

    async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: Any) -> Any:
        """One message; those of a stream have the place of their acknowledgement for a reply subject."""
        subject = str(msg.raw_message.subject)
        proper = "$JS.ACK." if subjects.pattern_of(subject) in _OF_STREAMS else subjects.INBOX
        if msg.reply_to and not msg.reply_to.startswith(proper):
            log.warning("bus_request_without_inbox", subject=subject)
            msg.reply_to = ""  # nothing is sent there, and nothing is done
            return None
        return await call_next(msg)


def _options(settings: Settings, service: str) -> dict[str, Any]:
    servers = settings.nats.servers
    if not servers:
        raise ConfigError("nats.servers: not set: name the servers, or run the service under `cypria up`")
    return {
        "servers": servers,
        "name": f"cypria-{service}",
        "inbox_prefix": inbox_prefix(settings, service),
        "connect_timeout": 1,
        "reconnect_time_wait": 0.1,
        "max_reconnect_attempts": -1,
        "ping_interval": 1,
        "max_outstanding_pings": 2,
    }


def inbox_prefix(settings: Settings, service: str) -> str:
    """Replies come under the NATS user's own prefix, the only one that the user may subscribe to."""
    return f"_INBOX.{settings.nats.credentials(service)[0] or service}"


class Bus:
    """One process's own connection.

    ``connected`` tells the present state; ``generation`` rises with every (re)connect and callbacks added
    with `on_reconnect` run then. Requests are not buffered while the server is away.
    """

    def __init__(self, settings: Settings, service: str, *, pending_size: int = 2 << 20) -> None:
        self.settings = settings
        self.service = service
        self._pending_size = pending_size
        self._callbacks: list[Callable[[], None]] = []
        self.generation = 0
        self.problem: str | None = None
        """Why the server cannot be trusted, or does not trust us, where that is so."""
        self._refusals: dict[str, str] = {}
        self._begun = False
        self.nc: Client = GuardedClient(encrypted=settings.nats.encrypted)
        self.js: JetStreamContext = self.nc.jetstream(timeout=2)

    async def connect(self) -> None:
        """Connect, waiting for the server as long as it takes (the supervisor may start it after us).

        Raises ConfigError where TLS refuses every server, or all of them our certificate.
        """
        user, password = self.settings.nats.credentials(self.service)
        secured = self.settings.nats.tls
        options = _options(self.settings, self.service)
        context = tls.client_context(secured, SECTION) if self.settings.nats.encrypted else None
        self._begun = True
        await self.nc.connect(
            **options,
            user=user,
            password=password,
            tls=context,
            tls_hostname=secured.hostname if secured else None,
            pending_size=self._pending_size,
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
            disconnected_cb=self._on_disconnected,
        )
        self.generation = 1
        self.problem = None

    @property
    def connected(self) -> bool:
        """Whether the connection stands now."""
        return bool(self.nc.is_connected)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` (quick, not async) after every reconnect."""
        self._callbacks.append(callback)

    def missing(self) -> str | None:
        """For readiness checks."""
        return None if self.connected else self.problem or "no connection to NATS"

    async def close(self) -> None:
        """Flush what is buffered and close."""
        if self.nc.is_closed or not self._begun:
            return
        try:
            if self.nc.is_connected:
                await self.nc.flush(timeout=1)
        except TRANSIENT as exc:
            log.warning("flush_failed", error=repr(exc))
        try:
            await self.nc.close()
        except (RuntimeError, *TRANSIENT) as exc:
            # With the server away, nats-py writes what is pending to a transport that uvloop has closed.
            log.warning("close_failed", error=repr(exc))

    async def _on_error(self, exc: Exception) -> None:
        self.problem = self._refused(exc)
        if self.problem is None:
            log.warning("nats_error", error=repr(exc))
            return
        log.error("nats_refused", reason=self.problem)
        if not self.generation and len(self._refusals) >= len(set(self.settings.nats.servers or [])):
            raise ConfigError("\n".join(self._refusals.values()))

    def _refused(self, exc: Exception) -> str | None:
        secured = self.settings.nats.tls
        why = str(exc) if isinstance(exc, PlainConnectionError) else tls.reason(exc, SECTION, secured)
        if why is None:
            return None
        server = self.nc._current_server  # noqa: SLF001 - an attempt that fails has no public address
        where = bare(server.uri.geturl()) if server else "nats.servers"
        self._refusals[where] = f"NATS at {where}: {why}"
        return self._refusals[where]

    async def _on_disconnected(self) -> None:
        if not self.nc.is_closed:
            log.warning("nats_disconnected")

    async def _on_reconnected(self) -> None:
        self.generation += 1
        self.problem = None
        log.info("nats_reconnected", generation=self.generation)
        for callback in self._callbacks:
            callback()


def make_broker(settings: Settings, service: str) -> NatsBroker:
    """A FastStream broker as the service's own user. Raises ConfigError where a file of `nats.tls` cannot be used."""
    options = _options(settings, service)
    user, password = settings.nats.credentials(service)
    secured, encrypted = settings.nats.tls, settings.nats.encrypted
    security: dict[str, Any] = {
        "ssl_context": tls.client_context(secured, SECTION) if encrypted else None,
        "tls_hostname": secured.hostname if secured else None,
    }
    if user and password:
        options["security"] = NatsUserPassword(user, password, **security)
    elif encrypted:
        options["security"] = NatsSecurity(**security)
    return GuardedBroker(encrypted=encrypted, **options, middlewares=(AnswersInInboxesOnly,), logger=None)


async def publish_durable(
    js: JetStreamContext,
    subject: str,
    payload: bytes,
    headers: dict[str, str] | None = None,
    *,
    patience_s: float = 15.0,
) -> PubAck:
    """Publish to a stream until it is acknowledged, with backoff and jitter, under the same headers each time.

    Raises the last error after ``patience_s``; errors that a retry cannot cure are raised at once.
    """
    deadline = monotonic() + patience_s
    delay = 0.05
    while True:
        try:
            return await js.publish(subject, payload, headers=headers, timeout=2)
        except APIError as exc:
            if exc.err_code == WRONG_LAST_SEQUENCE or monotonic() + delay > deadline:
                raise
        except TRANSIENT:
            if monotonic() + delay > deadline:
                raise
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, 1.0)


async def dead_letter(
    js: JetStreamContext, *, stream: str, consumer: str, subject: str, sequence: int, payload: bytes, reason: str,
    deliveries: int = 1,
) -> None:  # fmt: skip
    """Put what could not be processed into the DLQ, once for each (stream, consumer, sequence)."""
    letter = DeadLetter(
        stream=stream, consumer=consumer, subject=subject, sequence=sequence, reason=reason, deliveries=deliveries,
        at_ms=now_ms(), payload_b64=base64.b64encode(payload).decode(),
    )  # fmt: skip
    log.error("dead_letter", stream=stream, consumer=consumer, sequence=sequence, reason=reason)
    headers = {"Nats-Msg-Id": f"dlq.{stream}.{consumer}.{sequence}"}
    await publish_durable(js, subjects.dlq(stream, consumer), letter.model_dump_json().encode(), headers)


async def request(
    nc: Client, subject: str, payload: bytes, timeout_s: float, headers: dict[str, str] | None = None
) -> Any:
    """Core request/reply; raises nats.errors.NoRespondersError, nats.errors.TimeoutError or another NatsError."""
    return await nc.request(subject, payload, timeout=timeout_s, headers=headers)


async def compare_and_set(
    kv: Any,
    key: str,
    change: Callable[[bytes | None], bytes | None] | Callable[[bytes | None], Awaitable[bytes | None]],
    *,
    patience_s: float = 15.0,
) -> tuple[bytes | None, int]:
    """Read, change and write back one KV key until nobody came between.

    ``change`` gets the present value (None when there is none) and returns the new one, empty to delete the key, or
    None to leave it as it is; its exceptions end the attempt. Returns (value now stored, its revision), after a
    deletion (None, 0). Raises the last error after ``patience_s``.
    """
    deadline = monotonic() + patience_s
    delay = 0.01
    while True:
        try:
            value, revision = await _read(kv, key)
            new = change(value)
            if isinstance(new, Awaitable):
                new = await new
            if new is None:
                return value, revision
            if not new:
                await kv.delete(key, last=revision)
                return None, 0
            revision = await kv.update(key, new, last=revision or None)
            return new, revision
        except KeyWrongLastSequenceError:
            if monotonic() > deadline:
                raise
        except TRANSIENT:
            if monotonic() + delay > deadline:
                raise
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, 0.5)


async def erase(js: JetStreamContext, stream: str, sequence: int) -> bool:
    """Have the server overwrite one message of a stream and drop it; False when it holds none (any more).

    A marker of deletion, or a newer message of the subject, would leave the bytes in the server's files. Raises
    NatsError when the server fails or does not answer.
    """
    try:
        return bool(await js.delete_msg(stream, sequence))
    except APIError:
        try:
            await js.get_msg(stream, sequence, direct=False)
        except NotFoundError:
            return False
        raise


async def erase_last(bus: Bus, stream: str, subject: str) -> bool:
    """`erase` of the last message of a subject."""
    try:
        stored = await bus.js.get_msg(stream, subject=subject, direct=False)
    except NotFoundError:
        return False
    return await erase(bus.js, stream, int(stored.seq or 0))


async def _read(kv: Any, key: str) -> tuple[bytes | None, int]:
    try:
        entry = await kv.get(key)
    except nats.js.errors.KeyNotFoundError as exc:
        return None, int(exc.entry.revision) if exc.entry else 0  # a deleted key keeps its place in the order
    return bytes(entry.value or b""), int(entry.revision)
