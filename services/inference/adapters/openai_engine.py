"""Any OpenAI-compatible server over pooled HTTP."""

import asyncio
import os
from email.utils import parsedate_to_datetime

import aiohttp

from services._runtime.clock import now_ms
from services._runtime.settings_model import Model
from services.inference.adapters.engine import EngineError, EngineHead, EngineRequest, Pieces
from services.inference.domain import requests

_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_CONNECT_S = 5.0
_KEEPALIVE_S = 4.0
"""Shorter than the five seconds of common servers, so that no request goes out on a connection being closed."""
_CONNECT_PAUSES_S = (0.05, 0.2)
_MAX_RETRY_AFTER_S = 3600


class OpenAIEngine:
    """Passes bodies on and answers back, byte for byte but for the model's name and the usage of streams.

    ``engine_args``: ``include_usage: false`` for a server that refuses `stream_options`; ``headers``: a mapping
    of further HTTP headers.
    """

    name = "openai"

    def __init__(self, model: Model) -> None:
        base = (model.base_url or "").rstrip("/")
        self._urls = {route: base + path for route, path in _PATHS.items()}
        self._base = base
        self._upstream = model.upstream_model or model.name
        self._key_env = model.api_key_env
        self._connections = model.max_concurrency
        self._ask_usage = bool(model.engine_args.get("include_usage", True))
        extra = model.engine_args.get("headers", {})
        self._headers = {"Content-Type": "application/json", **{str(k): str(v) for k, v in extra.items()}}
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(_CONNECT_S, model.timeout_seconds), sock_read=model.timeout_seconds
        )
        self._session: aiohttp.ClientSession | None = None

    async def load(self) -> None:
        """Open the pool. Raises ValueError when the variable that holds the key is not set."""
        if self._key_env:
            key = os.environ.get(self._key_env)
            if not key:
                raise ValueError(f"api_key_env: the environment variable {self._key_env} is not set: set it")
            self._headers["Authorization"] = f"Bearer {key}"
        connector = aiohttp.TCPConnector(
            limit=self._connections, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=30, enable_cleanup_closed=False
        )
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._headers, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True, skip_auto_headers=("User-Agent",), read_bufsize=1 << 17,
        )  # fmt: skip

    async def warm(self) -> None:
        """Nothing: the server warms itself, and may well come up later than we do."""

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def memory_bytes(self) -> int:
        """Nothing of the model is here."""
        return 0

    def dead(self) -> str | None:
        """A server that is away may come back, so the worker goes on asking it."""
        return None

    async def generate(self, request: EngineRequest) -> Pieces:
        """See Engine. A connection that was refused is tried again twice: nothing was sent."""
        body = requests.for_upstream(
            request.body, request.wants, self._upstream, ask_usage=request.stream and self._ask_usage
        )
        url = self._urls.get(request.route)
        if url is None:
            raise EngineError(404, f"no route '{request.route}'", kind="invalid_request_error")
        response = await self._send(url, body)
        try:
            headers = response.headers
            content_type = headers.get("Content-Type", "application/json")
            yield EngineHead(response.status, content_type, _retry_after(headers.get("Retry-After")))
            if request.stream and response.status < 300:
                while piece := await response.content.readany():
                    yield piece
            else:
                yield await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _failure(exc) from exc
        finally:
            # Before its end a closed connection is what tells the server to stop generating; after it, release
            # has already put the connection back and this does nothing.
            response.close()

    async def _send(self, url: str, body: bytes) -> aiohttp.ClientResponse:
        if self._session is None:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        for pause in (*_CONNECT_PAUSES_S, None):
            try:
                return await self._session.post(url, data=body, allow_redirects=False)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
                if pause is None:
                    raise EngineError(
                        503, "the engine cannot be reached", kind="engine_unavailable", retry_after=1, reset=True
                    ) from exc
                await asyncio.sleep(pause)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                raise _failure(exc) from exc
        raise AssertionError("unreachable")


def _failure(exc: BaseException) -> EngineError:
    if isinstance(exc, TimeoutError):
        return EngineError(504, "the engine did not answer in time", kind="timeout")
    return EngineError(502, f"the engine broke off the connection ({type(exc).__name__})", kind="engine_error")


def _retry_after(value: str | None) -> int:
    """Seconds of a Retry-After header in either form, 0 without one or with one that makes no sense."""
    if not value:
        return 0
    if value.isdigit():
        seconds = int(value)
    else:
        try:
            seconds = round(parsedate_to_datetime(value).timestamp() - now_ms() / 1000)
        except ValueError:
            return 0
    return max(1, min(seconds, _MAX_RETRY_AFTER_S))
