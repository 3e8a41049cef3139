"""A small client of the control API for the command line."""

import asyncio
import errno
import json
import os
import ssl
import sys
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from pydantic import ValidationError

from services._runtime import tls, variables
from services._runtime.settings_base import ConfigError, default_data_dir, is_url
from services._runtime.settings_tls import ClientTls

DEFAULT_URL = "http://127.0.0.1:2242"


class ApiError(RuntimeError):
    """What the edge refused, in its own words."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
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
    cut_off = isinstance(exc, aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError)
    cut_off = cut_off or getattr(exc, "errno", None) == errno.ECONNRESET
    if cut_off and url().startswith("http://"):
        return "it closed the connection: if it serves TLS, CYPRIA_URL begins with https://"
    if cut_off and os.environ.get("CYPRIA_CERT_FILE"):
        # What a server says of a client's certificate comes after the handshake, and is lost with the request.
        return "it closed the connection: the certificate in CYPRIA_CERT_FILE may not be of the edge's authority"
    if isinstance(exc, aiohttp.ClientConnectorError):
        # The library's own words hold the address of a Python object where TLS is on.
        code = exc.os_error.errno or 0  # below 0 of a name that cannot be resolved
        return f"no connection: {os.strerror(code) if code > 0 else exc.os_error.strerror or exc.os_error}"
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
    try:
        return (data_dir() / "admin.key").read_text().strip()
    except OSError:
        return None


def data_dir() -> Path:
    """`CYPRIA_DATA_DIR`, by default where `cypria up` keeps everything."""
    folder = os.environ.get("CYPRIA_DATA_DIR")
    return Path(folder) if folder else default_data_dir()


async def acall(
    method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None,
    base: str | None = None, token: str | None = None, accept: str = "application/json",
) -> Any:  # fmt: skip
    """One call; the decoded JSON, or the text of any other type that ``accept`` asked for.

    Raises ApiError for a refusal and OSError when nobody answers.
    """
    headers = {"Accept": accept}
    if bearer := token or key():
        headers["Authorization"] = f"Bearer {bearer}"
    query = {k: str(v) for k, v in (params or {}).items() if v is not None}
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
        session.request(method, (base or url()) + path, json=body, params=query, ssl=tls_context()) as response,
    ):
        text = await response.text()
        try:
            data = json.loads(text) if text and response.content_type == "application/json" else text or None
        except ValueError:
            data = text
        if response.status >= 400:
            error = data.get("error", {}) if isinstance(data, dict) else {}
            stranger = f"{base or url()} answered HTTP {response.status}, and not as Cypria does: check CYPRIA_URL"
            wait = response.headers.get("Retry-After", "")
            raise ApiError(
                response.status, error.get("message") or stranger, float(wait) if wait.isdigit() else 0.0
            )
        return data


def call(
    method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None,
    accept: str = "application/json", raises: int | None = None,
) -> Any:  # fmt: skip
    """`acall` from synchronous code; refusals and an absent edge end the command with a clear line.

    Raises ApiError for a refusal with the status ``raises`` alone.
    """
    try:
        return asyncio.run(acall(method, path, body=body, params=params, accept=accept))
    except ApiError as exc:
        if exc.status == raises:
            raise
        hint = " (set CYPRIA_API_KEY)" if exc.status == 401 else ""
        fail(f"{exc}{hint}")
    except TimeoutError:
        fail(f"no answer from {url()} within 30 s: ask again, or look at its log")
    except (OSError, aiohttp.ClientError) as exc:
        if why := tls.reason(exc, "CYPRIA", _tls()):
            fail(f"no connection to {url()}: {why}")
        fail(f"no answer from {url()} ({explained(exc)}): is `cypria up` running? CYPRIA_URL names another edge")
