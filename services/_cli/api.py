"""The control API for the command line: by the Python client's parts, with errors that end the command."""

import os
import ssl
import sys
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from cypria import _http, _words
from cypria._settings import DEFAULT_URL, address_of
from cypria.errors import LOOK, ApiError, SettingsError, UnexpectedAnswer
from services._runtime import tls, variables
from services._runtime.settings_base import ConfigError, default_data_dir
from services._runtime.settings_tls import ClientTls

if TYPE_CHECKING:
    from cypria import Client

__all__ = ["ApiError"]
PATIENCE_S = 30.0


def fail(message: str, status: int = 1) -> NoReturn:
    """One line on stderr and an exit status."""
    sys.stderr.write(f"cypria: {message}\n")
    raise SystemExit(status)


def url() -> str:
    """`CYPRIA_URL`, by default the local edge; ends the command where it is none."""
    try:
        return address_of(os.environ.get("CYPRIA_URL") or DEFAULT_URL, "CYPRIA_URL")
    except SettingsError as exc:
        fail(str(exc), 2)


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
    return _words.explained(exc, url(), shows_certificate=bool(os.environ.get("CYPRIA_CERT_FILE")))


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
    query = _query(method, path, body, params, accept, base, token)
    async with _http.session(PATIENCE_S) as session:
        try:
            answer = await _http.aexchange(query, session, tls_context())
        except _http.NotSentError as exc:
            raise exc.__cause__ or exc from None
    return _http.decoded(query, answer, Answer)


def call(
    method: str, path: str, *, body: dict[str, Any] | None = None, params: dict[str, Any] | None = None,
    accept: str = "application/json", raises: int | None = None,
) -> Any:  # fmt: skip
    """Like `acall`, in a process that does nothing else; refusals and an absent edge end the command with a clear line.

    Raises ApiError for a refusal with the status ``raises`` alone.
    """
    try:
        query = _query(method, path, body, params, accept)
        try:
            answer = _http.exchange(query, PATIENCE_S, tls_context())
        except _http.NotSentError as exc:
            raise exc.__cause__ or exc from None
        return _http.decoded(query, answer, Answer)
    except ApiError as exc:
        if exc.status == raises:
            raise
        hint = " (set CYPRIA_API_KEY)" if exc.status == 401 else ""
        fail(f"{exc}{hint}")
    except UnicodeError:
        fail("an argument is not UTF-8: give names and ids as `cypria status` and `cypria models list` show them", 2)
    except TimeoutError:
        fail(f"no answer from {url()} within {PATIENCE_S:.0f} s: ask again, or look at its log")
    except (OSError, HTTPException) as exc:
        if why := tls.reason(exc, "CYPRIA", _tls()):
            fail(f"no connection to {url()}: {why}")
        fail(f"no answer from {url()} ({explained(exc)}): is `cypria up` running? CYPRIA_URL names another edge")


def _query(
    method: str, path: str, body: dict[str, Any] | None, params: dict[str, Any] | None, accept: str,
    base: str | None = None, token: str | None = None,
) -> _http.Query:  # fmt: skip
    return _http.Query(method, base or url(), path, params, body, accept, token or key())


def client() -> "Client":
    """The Python client, for what takes more than one question; as the environment says."""
    from cypria import Client

    context = tls_context()
    return Client(url(), api_key=key() or "", ssl_context=context if isinstance(context, ssl.SSLContext) else None)


class Answer(dict[str, Any]):
    """An object of an answer: what it lacks tells that it does not come from an edge of this version."""

    def __missing__(self, name: str) -> NoReturn:
        raise UnexpectedAnswer(200, f"the answer of {url()} has no '{name}': {LOOK}")
