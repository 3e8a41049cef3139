"""Why a connection failed, in words: where it went, what happened, what to do. Addresses end at the port."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator

import aiohttp
import aiosmtplib

from services._runtime import tls
from services.alerts.domain.peer import Peer

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
_CUT_OFF = (aiohttp.ServerDisconnectedError, ConnectionError, aiosmtplib.SMTPServerDisconnected, ssl.SSLError)
_TIMEOUTS = (TimeoutError, aiosmtplib.SMTPTimeoutError)
_STRANGE = (aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError)


def explained(exc: BaseException, peer: Peer, timeout_s: float) -> str:
    """An error of one attempt; the class of the error is named only where nothing is known of it."""
    if why := tls.reason(exc, "", None, trust=peer.trust):
        return f"no safe connection to {peer.where}: {why}"
    chain = list(_chain(exc))
    for find in (_not_reached, _not_understood):
        for one in chain:
            if said := find(one, peer, timeout_s):
                return said
    return f"no answer from {peer.where} that can be read ({type(exc).__name__}): check {peer.address} and that server"


def _not_reached(one: BaseException, peer: Peer, timeout_s: float) -> str | None:
    number = one.errno if isinstance(one, OSError) else None
    said = None
    if isinstance(one, aiohttp.ClientProxyConnectionError):
        said = "no connection to the proxy that HTTP_PROXY or HTTPS_PROXY names: check it, or set NO_PROXY"
    elif isinstance(one, socket.gaierror):
        said = f"no address is known for the host name {peer.host}: check {peer.address}, and this machine's DNS"
    elif number == errno.ECONNREFUSED:
        said = f"{peer.where} refuses connections: nothing listens there; start it, or check {peer.address}"
    elif number in _NO_ROUTE:
        said = f"no way leads to {peer.where}: check {peer.address}, and this machine's network"
    elif isinstance(one, _TIMEOUTS):
        said = f"no answer from {peer.where} within {timeout_s:g} s: check {peer.address}, that server, and firewalls"
    return said


def _not_understood(one: BaseException, peer: Peer, _timeout_s: float) -> str | None:
    said = None
    if isinstance(one, aiosmtplib.SMTPNotSupported) or "not supported by server" in str(one):
        said = f"{peer.where} does not offer what is set ({one}): check starttls, tls, username and the port"
    elif isinstance(one, aiohttp.InvalidURL):
        said = f"what {peer.address} holds is no address that can be called: correct it"
    elif isinstance(one, _CUT_OFF):
        said = (
            f"{peer.where} closed the connection before it had answered: check {peer.address} (the port, with or "
            "without TLS), and that server's log"
        )
    elif isinstance(one, _STRANGE):
        said = f"{peer.where} does not answer as such a server does: check {peer.address}"
    elif isinstance(one, OSError) and (one.errno or 0) > 0:
        said = f"no connection to {peer.where} ({os.strerror(one.errno or 0)}): check {peer.address}"
    return said


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was made of; libraries wrap them in their own."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [getattr(one, "os_error", None), one.__cause__, one.__context__]
