"""A small client of the control API for the command line."""

import contextlib
import errno
import json
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

from pydantic import ValidationError

from services._runtime import tls, variables
from services._runtime.settings_base import ConfigError, default_data_dir, is_url
from services._runtime.settings_tls import ClientTls

DEFAULT_URL = "http://127.0.0.1:2242"
PATIENCE_S = 30.0
_KEPT = "/%:@!$&'()*+,;=~"
"""What a path may hold as it is: callers have quoted what needs it."""


class ApiError(RuntimeError):
    """What the edge refused, in its own words; ``body`` is the whole answer."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0, body: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after = retry_after


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on stderr and an exit status."""
    sys.stderr.write(f"cypria: {message}\n")
    raise SystemExit(status)


def url() -> str:
    """`CYPRIA_URL`, by default the local edge; ends the command where it is none."""
    given = (os.environ.get("CYPRIA_URL") or DEFAULT_URL).rstrip("/")
    if not is_url(given, {"http", "https"}):
        fail(f"CYPRIA_URL is '{given}': give an address such as {DEFAULT_URL}", 2)
    return given


def _tls() -> ClientTls:
    def path(name: str) -> Path | None:
        return Path(os.environ[name]) if os.environ.get(name) else None

    try:
        return ClientTls(
            ca_file=path("CYPRIA_CA_FILE"), cert_file=path("CYPRIA_CERT_FILE"), key_file=path("CYPRIA_KEY_FILE")
        )
    except ValidationError:
        fail("CYPRIA_CERT_FILE and CYPRIA_KEY_FILE go together: set both or neither", 2)


def tls_context() -> ssl.SSLContext | bool:
    """How to check an edge over TLS, and what to show it; ends the command where a file is no good."""
    if not url().startswith("https://"):
        return True
    try:
        return tls.client_context(_tls(), "CYPRIA")
    except ConfigError as exc:
        fail(str(exc), 2)


def explained(exc: BaseException) -> str:
    """An error of the connection in words."""
    if why := tls.reason(exc, "CYPRIA", _tls()):
        return why
    aiohttp: Any = sys.modules.get("aiohttp")  # where nothing has imported it, the error is none of its own
    theirs = (aiohttp.ServerDisconnectedError, aiohttp.ClientResponseError) if aiohttp else ()
    cut_off = isinstance(exc, (HTTPException, ssl.SSLError, *theirs)) or getattr(exc, "errno", None) == errno.ECONNRESET
    if cut_off and url().startswith("http://"):
        return "it closed the connection: if it serves TLS, CYPRIA_URL begins with https://"
    if cut_off and os.environ.get("CYPRIA_CERT_FILE"):
        # What a server says of a client's certificate comes after the handshake, and is lost with the request.
        return "it closed the connection: the certificate in CYPRIA_CERT_FILE may not be of the edge's authority"
    if cut_off:
        return "it closed the connection: if it serves no TLS, CYPRIA_URL begins with http://"
    # aiohttp's own words hold the address of a Python object where TLS is on.
    error = exc.os_error if aiohttp and isinstance(exc, aiohttp.ClientConnectorError) else exc
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        # below 0 of a name that cannot be resolved
        return f"no connection: {os.strerror(error.errno) if error.errno > 0 else error.strerror or error}"
    return str(exc) or type(exc).__name__


def key() -> str | None:
    """`CYPRIA_API_KEY`, or the file that CYPRIA_API_KEY_FILE names, else the admin key in the data dir."""
    try:
        given = variables.value("CYPRIA_API_KEY", os.environ)
    except ConfigError as exc:
        fail(str(exc), 2)
    if value := (given or "").strip():
        if not value.isprintable():
            fail("CYPRIA_API_KEY holds more than one line: set it to one key", 2)
        return value
    file = data_dir() / "admin.key"
    try:
        kept = file.read_text().strip()
    except OSError:
        return None
    except UnicodeError:
        kept = "\0"
    if not kept.isprintable():
        fail(f"{file} holds more than one key: set CYPRIA_API_KEY, or have that file hold one line", 2)
    return kept


def data_dir() -> Path:
    """`CYPRIA_DATA_DIR`, by default where `cypria up` keeps everything."""
    folder = os.environ.get("CYPRIA_DATA_DIR")
    return Path(folder) if folder else default_data_dir()


async def acall(
    method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None,
    base: str | None = None, token: str | None = None, accept: str = "application/json",
) -> Any:  # fmt: skip
    """One call, for those who do something else meanwhile; the decoded JSON, or the text of any other type that
    ``accept`` asked for.

    Raises ApiError for a refusal and OSError or aiohttp.ClientError when nobody answers.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=_headers(accept, token)) as session,
        session.request(
            method, (base or url()) + path, json=body, params=_query(params), ssl=tls_context(), allow_redirects=False
        ) as response,
    ):
        wait = response.headers.get("Retry-After", "")
        text = (await response.read()).decode("utf-8", "replace")
        return _decoded(base or url(), response.status, response.content_type, text, wait, accept)


def call(
    method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None,
    accept: str = "application/json", raises: int | None = None,
) -> Any:  # fmt: skip
    """Like `acall`, in a process that does nothing else; refusals and an absent edge end the command with a clear line.

    Raises ApiError for a refusal with the status ``raises`` alone.
    """
    try:
        return _ask(method, path, body, params, accept)
    except ApiError as exc:
        if exc.status == raises:
            raise
        hint = " (set CYPRIA_API_KEY)" if exc.status == 401 else ""
        fail(f"{exc}{hint}")
    except UnicodeError:
        fail(f"CYPRIA_URL is '{url()}': no host is named so; give an address such as {DEFAULT_URL}", 2)
    except TimeoutError:
        fail(f"no answer from {url()} within {PATIENCE_S:.0f} s: ask again, or look at its log")
    except (OSError, HTTPException) as exc:
        if why := tls.reason(exc, "CYPRIA", _tls()):
            fail(f"no connection to {url()}: {why}")
        fail(f"no answer from {url()} ({explained(exc)}): is `cypria up` running? CYPRIA_URL names another edge")


def _ask(
    method: str, path: str, body: dict[str, Any] | None, params: dict[str, Any] | None, accept: str
) -> Any:
    """By the standard library: an asynchronous client takes longer to import than most answers take."""
    address, context = urlsplit(url() + path), tls_context()
    query = "&".join(filter(None, (address.query, urlencode(_query(params)))))
    host = address.hostname or ""
    connection = (
        HTTPSConnection(host, address.port, timeout=PATIENCE_S, context=context)
        if isinstance(context, ssl.SSLContext)
        else HTTPConnection(host, address.port, timeout=PATIENCE_S)
    )
    headers = {name: value.encode() for name, value in _headers(accept).items()}
    if body is not None:
        headers["Content-Type"] = b"application/json"
    with contextlib.closing(connection):
        target = quote(address.path, safe=_KEPT) + (f"?{query}" if query else "")
        connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
    wait = response.headers.get("Retry-After", "")
    return _decoded(url(), response.status, response.headers.get_content_type(), text, wait, accept)


def _headers(accept: str, token: str | None = None) -> dict[str, str]:
    bearer = token or key()
    return {"Accept": accept} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})


def _query(params: dict[str, Any] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (params or {}).items() if value is not None}


class Answer(dict[str, Any]):
    """An object of an answer: what it lacks tells that it does not come from an edge of this version."""

    def __missing__(self, name: str) -> NoReturn:
        raise ApiError(200, f"the answer of {url()} has no '{name}': {_LOOK}")


_LOOK = "check CYPRIA_URL, what stands between, and that `cypria` and the edge are of one version"


def _decoded(base: str, status: int, media: str, text: str, wait: str, accept: str) -> Any:
    """What an answer holds; ``wait`` is its Retry-After. Raises ApiError for a refusal, and for what is no answer."""
    data: Any = text
    if media == "application/json":
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(text, object_hook=Answer)
    stranger = f"{base} answered HTTP {status}, and not as Cypria does: {_LOOK}"
    if status >= 300:
        error = data.get("error") if isinstance(data, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        raise ApiError(status, said or stranger, float(wait) if wait.isdigit() else 0.0, data)
    if not (isinstance(data, dict) if accept == "application/json" else media == accept):
        raise ApiError(status, stranger)
    return data
