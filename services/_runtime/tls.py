"""TLS: contexts made from files that are looked at first, and in words why a connection was refused.

A certificate that is no longer or not yet valid, or not made for its purpose, would only be refused by those who are
shown it, one by one and late; so each is shown to ourselves before anything starts.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services._runtime.settings_base import ConfigError
from services._runtime.settings_tls import ClientTls, ServerTls

_EXPIRED, _NOT_YET, _WRONG_HOST = 10, 9, frozenset({62, 64})
_REFUSED_OURS = ("ALERT_", "_ALERT")
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_DEPTH = 8


def named(section: str, field: str) -> str:
    """A setting as its user writes it: ``nats.tls.ca_file``, or of the command line's ``CYPRIA`` CYPRIA_CA_FILE."""
    return f"{section}_{field}".upper() if section.isupper() else f"{section}.{field}"


class _EncryptedKeyError(Exception):
    """A key is kept under a passphrase."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of one that was found good: when it ends (seconds since 1970)."""

    ends: float


def client_context(tls: ClientTls | None, section: str) -> ssl.SSLContext:
    """How to connect as ``section`` (such as ``nats.tls``) says: what to trust, and what to show.

    Raises ConfigError naming the setting, the file and the reason.
    """
    if tls is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cafile=_authorities(section, "ca_file", tls.ca_file))
    if tls.cert_file and tls.key_file:
        _load(context, section, tls.cert_file, tls.key_file, of_client=True)
    return context


def server_context(tls: ServerTls, section: str) -> ssl.SSLContext:
    """How to serve as ``section`` says. Where ``client_ca_file`` is set, callers are asked for a certificate; whether
    one is needed is for the protocol to say, since health checks have none.

    Raises ConfigError naming the setting, the file and the reason.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, section, tls.cert_file, tls.key_file, of_client=False)
    if tls.client_ca_file:
        context.load_verify_locations(cafile=_authorities(section, "client_ca_file", tls.client_ca_file))
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Serving:
    """A server's context, kept up with its files: a certificate that was renewed counts for the next connection.

    Raises ConfigError like `server_context`.
    """

    def __init__(self, files: ServerTls, section: str) -> None:
        self.files = files
        self._section = section
        self._seen = self._stamp()
        self.context = server_context(files, section)

    def renew(self) -> bool:
        """Take up changed files; False where they are as they were.

        Raises ConfigError, once for each change, where they cannot be used: the certificate before them stays.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        server_context(self.files, self._section)
        self.context.load_cert_chain(self.files.cert_file, self.files.key_file)
        return True

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in (self.files.cert_file, self.files.key_file):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found


def pinned_context(cert_file: Path) -> ssl.SSLContext:
    """For asking one's own server, by whatever address: trusts the certificate in the file, whatever it is made out to.

    Raises OSError and ssl.SSLError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cafile=cert_file)
    return context


def lacks_certificate(transport: Any) -> bool:
    """Whether a connection to a server that wants callers' certificates has come without one."""
    channel = transport.get_extra_info("ssl_object")
    return (
        channel is not None
        and channel.context.verify_mode == ssl.CERT_OPTIONAL
        and channel.getpeercert(binary_form=True) is None
    )


def certificate(section: str, cert_file: Path, key_file: Path, *, of_client: bool) -> Certificate:
    """Look at a certificate and its key as those will who are shown it. Raises ConfigError."""
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), section, cert_file, key_file, of_client=of_client)


def reason(exc: BaseException, section: str, tls: ClientTls | None, trust: str | None = None) -> str | None:
    """Why TLS refused a connection, and what to do; None where the error is about something else. ``trust`` is what
    names the authorities where ``section`` has no settings of TLS.

    A connection that was cut off is something else: servers die in the middle of a handshake, too.
    """
    # aiohttp's errors are of that class as well, but for what it knows.
    error = _found(exc, lambda one: isinstance(one, ssl.SSLError) and type(one).__module__ == "ssl")
    if error is None or isinstance(error, _CUT_OFF):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({_sentence(error.verify_message)}): {_remedy(error, section, tls, trust)}"
    name = error.reason or ""
    if any(part in name for part in _REFUSED_OURS):
        said = name.split("ALERT_")[-1].replace("_", " ").lower()
        if tls is not None and tls.cert_file:
            ours = f"{named(section, 'cert_file')} {tls.cert_file}"
            return f"it refuses the certificate of {ours} ({said}): give one that it trusts"
        wanted = f"set {named(section, 'cert_file')} and {named(section, 'key_file')}"
        if trust is not None:
            wanted = "choose an address where none is wanted"
        return f"it refuses us ({said}): it may want a certificate, so {wanted}"
    if name in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "it does not speak TLS there: check the address and its port"
    return f"TLS failed ({name.replace('_', ' ').lower() or error}): check the address, and its certificate"


def _remedy(
    error: ssl.SSLCertVerificationError, section: str, tls: ClientTls | None, trust: str | None
) -> str:
    if error.verify_code in {_EXPIRED, _NOT_YET}:
        return "renew it, or set this machine's clock"
    if error.verify_code in _WRONG_HOST:
        hint = f", or set {named(section, 'hostname')}" if section == "nats.tls" else ""
        return f"name the server as its certificate does{hint}"
    if tls is not None and tls.ca_file:
        return f"{named(section, 'ca_file')} {tls.ca_file} must hold the authority that signed it"
    return f"set {trust or named(section, 'ca_file')} to the authority that signed it"


def _sentence(text: str) -> str:
    return text.rstrip(".")


def was_cut_off(exc: BaseException) -> bool:
    """Whether the other side closed the connection without a word, as some do that do not take a certificate."""
    return _found(exc, lambda one: isinstance(one, (ConnectionError, *_CUT_OFF))) is not None


def _found(exc: BaseException, wanted: Callable[[Any], bool]) -> Any:
    """The error that is wanted among those that an exception was made of, if any; libraries wrap it in their own."""
    waiting: list[Any] = [exc]
    for _ in range(_DEPTH * _DEPTH):
        if not waiting:
            return None
        one = waiting.pop(0)
        if wanted(one):
            return one
        if isinstance(one, BaseException):
            waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return None


def _authorities(section: str, field: str, path: Path | None) -> str | None:
    """The file, once it is known to hold certificates. Raises ConfigError."""
    if path is None:
        return None
    _readable(section, field, path)
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        probe.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ConfigError(
            f"{named(section, field)}: {path} holds no certificate: give a PEM file with -----BEGIN CERTIFICATE-----"
        ) from None
    return str(path)


def _readable(section: str, field: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        raise ConfigError(
            f"{named(section, field)}: {path} cannot be read ({exc.strerror}): give a PEM file that this process may "
            "read"
        ) from None


def _load(context: ssl.SSLContext, section: str, cert_file: Path, key_file: Path, *, of_client: bool) -> Certificate:
    _readable(section, "cert_file", cert_file)
    _readable(section, "key_file", key_file)
    _pair(context, section, cert_file, key_file)
    try:
        return _shown(cert_file, key_file, of_client=of_client)
    except ssl.SSLCertVerificationError as exc:
        said = _sentence(exc.verify_message)
        renew = "renew it, or set this machine's clock" if exc.verify_code in {_EXPIRED, _NOT_YET} else "give another"
        raise ConfigError(f"{named(section, 'cert_file')}: {cert_file} cannot be used ({said}): {renew}") from None
    except ssl.SSLError as exc:
        raise ConfigError(
            f"{named(section, 'cert_file')}: {cert_file} cannot be used ({exc.reason or exc}): give another"
        ) from None


def _pair(context: ssl.SSLContext, section: str, cert_file: Path, key_file: Path) -> None:
    """Load a certificate and its key. Raises ConfigError naming the one that is wrong."""
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except _EncryptedKeyError:
        raise ConfigError(
            f"{named(section, 'key_file')}: {key_file} is under a passphrase: give a key without one, readable by this "
            "user alone"
        ) from None
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"{named(section, 'key_file')}: {key_file} is not the key of {cert_file}: give the one that belongs to "
                "it"
            ) from None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=cert_file)
        except ssl.SSLError:
            raise ConfigError(
                f"{named(section, 'cert_file')}: {cert_file} holds no certificate: give a PEM file with "
                "-----BEGIN CERTIFICATE-----, the server's own first"
            ) from None
        raise ConfigError(
            f"{named(section, 'key_file')}: {key_file} holds no usable private key: give a PEM file with "
            "-----BEGIN PRIVATE KEY-----"
        ) from None


def _no_passphrase() -> str:
    raise _EncryptedKeyError


def _shown(cert_file: Path, key_file: Path, *, of_client: bool) -> Certificate:
    """A handshake in memory in which one side shows the certificate and the other trusts it and nothing else.

    Raises ssl.SSLCertVerificationError for what others would refuse as well.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    server.load_cert_chain(cert_file, key_file)
    judge = server if of_client else client
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    judge.load_verify_locations(cafile=cert_file)
    judge.verify_mode = ssl.CERT_REQUIRED
    if of_client:
        client.verify_mode = ssl.CERT_NONE
        client.load_cert_chain(cert_file, key_file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in _turns(sides):
        pass
    found = sides[1 if of_client else 0].getpeercert() or {}
    return Certificate(ends=ssl.cert_time_to_seconds(str(found["notAfter"])))


def _turns(sides: list[ssl.SSLObject]) -> Iterator[None]:
    """Let both sides speak in turn until both are content."""
    done = [False, False]
    for _ in range(_DEPTH):
        for index, side in enumerate(sides):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done[index] = True
        yield
        if all(done):
            return
