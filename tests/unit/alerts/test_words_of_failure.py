"""Why a delivery failed, as people read it: where it went, what happened, what to do; no class names, nothing secret."""

import errno
import socket
import ssl

import aiohttp
import aiosmtplib
import pytest
from aiohttp.client_reqrep import ConnectionKey

from services.alerts.adapters.explaining import explained
from services.alerts.domain.peer import http_words, peer_of

PEER = peer_of("https://hooks.company.com/T0/hidden?key=hidden", "webhook_url_env (HOOK)", "token_env (BOT)")
KEY = ConnectionKey("hooks.company.com", 443, True, True, None, None, None)


def wrapped(cause: Exception) -> aiosmtplib.SMTPConnectError:
    outer = aiosmtplib.SMTPConnectError("Error connecting")
    outer.__cause__ = cause
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-2, "Name or service not known")), "no address is known for"),
        (wrapped(socket.gaierror(-2, "Name or service not known")), "no address is known for the host name hooks.company.com"),
        (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(errno.ECONNREFUSED, "no")), "refuses connections"),
        (wrapped(ConnectionRefusedError(errno.ECONNREFUSED, "no")), "refuses connections"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "no")), "no way leads to"),
        (TimeoutError(), "within 5 s"),
        (aiosmtplib.SMTPReadTimeoutError("late"), "within 5 s"),
        (aiohttp.ServerDisconnectedError(), "closed the connection"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "closed the connection"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "closed the connection"),
        (aiohttp.ClientPayloadError("cut"), "that can be read (ClientPayloadError)"),
        (OSError(errno.EACCES, "denied"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_every_way_to_fail_has_words(error: Exception, said: str) -> None:
    words = explained(error, PEER, 5)
    assert said in words
    assert "hooks.company.com" in words
    assert "webhook_url_env (HOOK)" in words
    assert "hidden" not in words


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 410, 413, 422, 429, 500, 502, 503])
def test_every_status_says_whose_it_is_and_what_to_do(status: int) -> None:
    words = http_words(status, PEER)
    assert words.startswith(f"HTTP {status} from hooks.company.com:443: ")
    assert any(hint in words for hint in ("check ", "set ", "look at ", "messages_per_minute"))
    assert "hidden" not in words


def test_a_proxy_and_an_authority_are_named_where_they_are_what_fails() -> None:
    assert "HTTPS_PROXY" in explained(aiohttp.ClientProxyConnectionError(KEY, OSError(errno.ECONNREFUSED, "no")), PEER, 5)
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_message, refused.verify_code = "self-signed certificate", 18
    words = explained(aiohttp.ClientConnectorCertificateError(KEY, refused), PEER, 5)
    assert words.endswith("(self-signed certificate): set the variable SSL_CERT_FILE to the authority that signed it")


@pytest.mark.parametrize(
    ("url", "where"), [("http://a/x", "a:80"), ("https://a:8443", "a:8443"), ("https://[::1]/x", "[::1]:443"), ("x://u:p@h", "h:80")]
)
def test_of_an_address_host_and_port_are_named(url: str, where: str) -> None:
    assert peer_of(url, "url").where == where
