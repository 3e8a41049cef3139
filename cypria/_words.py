"""Errors of a connection in words."""

import errno
import os
import ssl
import sys
from http.client import HTTPException
from typing import Any

HOST = "is `cypria up` running? CYPRIA_URL names another edge"
_EXPIRED, _NOT_YET, _WRONG_HOST = 10, 9, frozenset({62, 64})


def explained(exc: BaseException, url: str, *, shows_certificate: bool = False) -> str:
    """Why no answer came from ``url``; ``shows_certificate``: whether a certificate was shown to it."""
    aiohttp: Any = sys.modules.get("aiohttp")  # where nothing has imported it, the error is none of its own
    # aiohttp's own words hold the address of a Python object where TLS is on.
    error = exc.os_error if aiohttp and isinstance(exc, aiohttp.ClientConnectorError) else exc
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused ({error.verify_message.rstrip('.')}): {_remedy(error)}"
    theirs = (aiohttp.ServerDisconnectedError, aiohttp.ClientResponseError) if aiohttp else ()
    cut_off = isinstance(error, (HTTPException, ssl.SSLError, *theirs)) or getattr(error, "errno", None) in _RESET
    if cut_off and url.startswith("http://"):
        return "it closed the connection: if it serves TLS, CYPRIA_URL begins with https://"
    if cut_off and shows_certificate:
        # What a server says of a client's certificate comes after the handshake, and is lost with the request.
        return "it closed the connection: the certificate in CYPRIA_CERT_FILE may not be of the edge's authority"
    if cut_off:
        return "it closed the connection: if it serves no TLS, CYPRIA_URL begins with http://"
    if isinstance(error, OSError) and error.errno:
        # below 0 of a name that cannot be resolved
        return f"no connection: {os.strerror(error.errno) if error.errno > 0 else error.strerror or error}"
    return str(exc) or type(exc).__name__


_RESET = {errno.ECONNRESET, errno.EPIPE}


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in {_EXPIRED, _NOT_YET}:
        return "renew it, or set this machine's clock"
    if error.verify_code in _WRONG_HOST:
        return "name the server as its certificate does"
    return "CYPRIA_CA_FILE must name a file with the authority that signed it"
