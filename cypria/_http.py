"""One exchange with the edge: by the standard library, or by aiohttp for those who do something else meanwhile.

A connection serves one request: a server that was started anew between two of them then never costs a command whose
fate nobody knows. What goes wrong is raised as it comes (OSError, http.client.HTTPException, aiohttp.ClientError).
"""

import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from cypria.errors import LOOK, ApiError, ServerUnavailable, UnexpectedAnswer, of_status

if TYPE_CHECKING:
    import aiohttp

_KEPT = "/%:@!$&'()*+,;=~"
"""What a path may hold as it is: callers have quoted what needs it."""
_LONGEST_LINE = 8 << 20
"""Of a stream, in bytes: a picture of all tests is one line."""
Secured = ssl.SSLContext | bool


class NotSentError(Exception):
    """No connection came about; the cause is why. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Query:
    """A request. ``url`` is the edge's address, ``path`` begins with a slash and is quoted where it must be."""

    method: str
    url: str
    path: str
    params: Mapping[str, Any] | None = None
    body: Mapping[str, Any] | None = None
    accept: str = "application/json"
    key: str | None = field(default=None, repr=False)

    def headers(self) -> dict[str, str]:
        """All of them but those that the body's length makes."""
        found = {"Accept": self.accept, "User-Agent": "cypria-python"}
        if self.key:
            found["Authorization"] = f"Bearer {self.key}"
        if self.body is not None:
            found["Content-Type"] = "application/json"
        return found

    def query(self) -> dict[str, str]:
        """The query, without what is None."""
        return {name: _text(value) for name, value in (self.params or {}).items() if value is not None}

    def content(self) -> bytes | None:
        """The body."""
        return None if self.body is None else json.dumps(self.body).encode()

    def target(self) -> str:
        """Path and query as the request's first line has them."""
        address = urlsplit(self.url + self.path)
        query = "&".join(filter(None, (address.query, urlencode(self.query()))))
        return quote(address.path, safe=_KEPT) + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; ``retry_after`` in seconds, 0 where none was given."""

    status: int
    media: str
    text: str
    retry_after: float = 0.0
    request_id: str = ""


def exchange(query: Query, timeout: float, context: Secured) -> Answer:
    """By the standard library: an asynchronous client takes longer to import than most answers take.

    Raises NotSentError, OSError, TimeoutError and http.client.HTTPException.
    """
    with _opened(query, timeout, context) as response:
        text = response.read().decode("utf-8", "replace")
        return _answer(response.status, response.headers.get_content_type(), text, response.headers)


@contextlib.contextmanager
def lines(query: Query, timeout: float, context: Secured) -> Iterator[tuple[Answer | None, Iterator[str]]]:
    """(a refusal, or None; the lines of a stream as they come). ``timeout`` holds for each of them."""
    with _opened(query, timeout, context) as response:
        media = response.headers.get_content_type()
        if response.status >= 300 or media != query.accept:
            text = response.read().decode("utf-8", "replace")
            yield _answer(response.status, media, text, response.headers), iter(())
            return
        yield None, (line.decode("utf-8", "replace") for line in response)


@contextlib.contextmanager
def _opened(query: Query, timeout: float, context: Secured) -> Iterator[HTTPResponse]:
    address = urlsplit(query.url)
    host = address.hostname or ""
    connection = (
        HTTPSConnection(host, address.port, timeout=timeout, context=context)
        if isinstance(context, ssl.SSLContext)
        else HTTPConnection(host, address.port, timeout=timeout)
    )
    with contextlib.closing(connection):
        try:
            connection.connect()
        except OSError as exc:
            raise NotSentError from exc
        headers = {name: value.encode() for name, value in query.headers().items()}
        connection.request(query.method, query.target(), query.content(), headers)
        yield connection.getresponse()


def session(timeout: float) -> "aiohttp.ClientSession":
    """For `aexchange`; to be closed. ``timeout`` is for a whole exchange."""
    import aiohttp

    connector = aiohttp.TCPConnector(force_close=True)
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout), connector=connector)


async def aexchange(query: Query, through: "aiohttp.ClientSession", context: Secured) -> Answer:
    """Like `exchange`. Raises NotSentError, OSError, TimeoutError and aiohttp.ClientError."""
    async with _aopened(query, through, context) as response:
        text = (await response.read()).decode("utf-8", "replace")
        return _answer(response.status, response.content_type, text, response.headers)


@contextlib.asynccontextmanager
async def alines(
    query: Query, through: "aiohttp.ClientSession", timeout: float, context: Secured  # noqa: ASYNC109 - of each line
) -> AsyncIterator[tuple[Answer | None, AsyncIterator[str]]]:
    """Like `lines`."""
    import aiohttp

    patience = aiohttp.ClientTimeout(total=None, connect=timeout, sock_read=timeout)
    async with _aopened(query, through, context, timeout=patience, read_bufsize=_LONGEST_LINE) as response:
        if response.status >= 300 or response.content_type != query.accept:
            text = (await response.read()).decode("utf-8", "replace")
            yield _answer(response.status, response.content_type, text, response.headers), _none()
            return
        yield None, _decoded(response.content)


@contextlib.asynccontextmanager
async def _aopened(
    query: Query, through: "aiohttp.ClientSession", context: Secured, **options: Any
) -> AsyncIterator["aiohttp.ClientResponse"]:
    import aiohttp
    from yarl import URL

    where = urlsplit(query.url)
    address = URL(f"{where.scheme}://{where.netloc}{query.target()}", encoded=True)
    try:
        response = await through.request(
            query.method, address, data=query.content(), headers=query.headers(), ssl=context, allow_redirects=False,
            **options,
        )  # fmt: skip
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
        raise NotSentError from exc
    async with response:
        yield response


async def _decoded(content: "aiohttp.StreamReader") -> AsyncIterator[str]:
    async for line in content:
        yield line.decode("utf-8", "replace")


async def _none() -> AsyncIterator[str]:
    return
    yield ""  # what makes it a generator


def _answer(status: int, media: str, text: str, headers: Any) -> Answer:
    wait = headers.get("Retry-After") or ""
    return Answer(status, media, text, float(wait) if wait.isdigit() else 0.0, headers.get("X-Request-ID") or "")


def decoded(
    query: Query, answer: Answer, make: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> Any:
    """What an answer holds: JSON, its objects as ``make`` makes them, or the text of another type that was asked for.

    Raises ApiError for a refusal, and UnexpectedAnswer for what is no answer of an edge.
    """
    data: Any = answer.text
    if answer.media == "application/json":
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(answer.text, object_hook=make)
    missing = data.get("missing") if isinstance(data, dict) else None
    if answer.status == 503 and isinstance(missing, dict):  # of /ready
        lacking = f"{query.url} is not ready yet: {'; '.join(f'{name}: {why}' for name, why in missing.items())}"
        raise ServerUnavailable(answer.status, lacking, answer.retry_after, data, request_id=answer.request_id)
    stranger = f"{query.url} answered HTTP {answer.status}, and not as Cypria does: {LOOK}"
    if answer.status >= 300:
        error = data.get("error") if isinstance(data, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        kind: type[ApiError] = of_status(answer.status) if said else UnexpectedAnswer
        raise kind(answer.status, said or stranger, answer.retry_after, data, request_id=answer.request_id)
    if not (isinstance(data, dict) if query.accept == "application/json" else answer.media == query.accept):
        raise UnexpectedAnswer(answer.status, stranger, request_id=answer.request_id)
    return data


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
