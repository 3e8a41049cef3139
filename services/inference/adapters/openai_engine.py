"""Any OpenAI-compatible server over pooled HTTP."""

import asyncio
import math
import os
import ssl
import zlib
from collections.abc import Callable
from email.utils import parsedate_to_datetime

from services._runtime import variables
from services._runtime.clock import now_ms
from services._runtime.settings_engines import Model
from services.inference.adapters.engine import (
    UNKNOWN,
    EngineError,
    EngineHead,
    EngineHealth,
    EngineRequest,
    OnProgress,
    Pieces,
    ignore_progress,
)
from services.inference.adapters.http_pool import ConnectError, Connection, HttpError, HttpPool, SlowError
from services.inference.domain import requests

_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_KNOWN_ARGS = {"include_usage", "headers"}
_CONNECT_S = 5.0
_CONNECT_PAUSES_S = (0.05, 0.2)
_MAX_RETRY_AFTER_S = 3600


class OpenAIEngine:
    """Passes bodies on and answers back, byte for byte but for the model's name and the usage of streams.

    ``engine_args``: ``include_usage: false`` for a server that refuses `stream_options`; ``headers``: a mapping
    of further HTTP headers. A request that is traced carries the engine's span along, so that the server can go on with
    the trace.
    """

    name = "openai"

    def __init__(self, model: Model) -> None:
        args = model.engine_args
        if unknown := set(args) - _KNOWN_ARGS:
            raise ValueError(
                f"engine_args.{min(unknown)}: engine openai has no such argument; "
                f"it has {', '.join(sorted(_KNOWN_ARGS))}"
            )
        self._base = model.base_url or ""
        self._upstream = model.upstream_model or model.name
        self._key_env = model.api_key_env
        self._ask_usage = bool(args.get("include_usage", True))
        self._headers = {str(name): str(value) for name, value in args.get("headers", {}).items()}
        self._own_trace = any(name.lower() == "traceparent" for name in self._headers)
        self._connect_s = min(_CONNECT_S, model.timeout_seconds)
        self._read_s = model.timeout_seconds
        self._pool: HttpPool | None = None

    async def load(self, progress: OnProgress = ignore_progress) -> None:  # noqa: ARG002 - it is done at once
        """Open the pool. Raises ValueError when the variable that holds the key is not set."""
        headers = {"Content-Type": "application/json", **self._headers}
        if self._key_env:
            key = variables.value(self._key_env, os.environ)
            if not key:
                raise ValueError(
                    f"api_key_env: the environment variable {self._key_env} is not set: set it, or "
                    f"{self._key_env}{variables.SUFFIX} to a file that holds it"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._pool = HttpPool(self._base, headers, connect_s=self._connect_s, read_s=self._read_s)

    async def warm(self) -> None:
        """Nothing: the server warms itself, and may well come up later than we do."""

    async def close(self) -> None:
        """Close the pool."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def memory_bytes(self) -> int:
        """Nothing of the model is here."""
        return 0

    def dead(self) -> str | None:
        """A server that is away may come back, so the worker goes on asking it."""
        return None

    def health(self) -> EngineHealth:
        """What it does is the server's own affair."""
        return UNKNOWN

    @property
    def version(self) -> str:
        """Not ours to know."""
        return ""

    async def generate(self, request: EngineRequest) -> Pieces:
        """See Engine. A connection that was refused is tried again twice: nothing was sent."""
        pool = self._pool
        if pool is None:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        path = _PATHS.get(request.route)
        if path is None:
            raise EngineError(404, f"no route '{request.route}'", kind="invalid_request_error")
        body = requests.for_upstream(
            request.body, request.wants, self._upstream, ask_usage=request.stream and self._ask_usage
        )
        response = await _send(pool, path, body, "" if self._own_trace else request.trace)
        try:
            headers = response.headers
            if not 200 <= response.status < 300 and not 400 <= response.status < 600:
                raise EngineError(
                    502, f"the engine answered with the status {response.status}, which is no answer: "
                    "check models[].base_url", kind="engine_error",
                )  # fmt: skip
            plain = _plain(headers.get("content-encoding", ""))
            content_type = _content_type(headers.get("content-type"))
            yield EngineHead(response.status, content_type, _retry_after(headers.get("retry-after")))
            if request.stream and response.status < 300:
                while piece := await response.piece():
                    yield plain(piece) if plain is not None else piece
            else:
                body = await response.body()
                yield plain(body) if plain is not None else body
        except zlib.error as exc:
            raise EngineError(502, "the engine's answer could not be decompressed", kind="engine_error") from exc
        except HttpError as exc:
            raise _failure(exc) from exc
        finally:
            # Before its end this closes the connection, which is what tells the server to stop generating.
            pool.release(response)


async def _send(pool: HttpPool, path: str, body: bytes, trace: str) -> Connection:
    for pause in (*_CONNECT_PAUSES_S, None):
        try:
            return await pool.post(path, body, trace)
        except ConnectError as exc:
            if pause is None:
                raise EngineError(503, _unreachable(exc), kind="engine_unavailable", retry_after=1, reset=True) from exc
            await asyncio.sleep(pause)
        except HttpError as exc:
            raise _failure(exc) from exc
    raise AssertionError("unreachable")


def _unreachable(exc: ConnectError) -> str:
    """The client's message: no address, but what is wrong with a certificate, which nobody would guess."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the engine cannot be reached: its certificate was refused ({cause.verify_message}); "
            "SSL_CERT_FILE of the inference service names the authorities that it trusts"
        )
    return "the engine cannot be reached"


def _failure(exc: HttpError) -> EngineError:
    if isinstance(exc, SlowError):
        return EngineError(504, "the engine did not answer in time", kind="timeout")
    return EngineError(502, "the engine broke off the connection", kind="engine_error")


def _plain(encoding: str) -> Callable[[bytes], bytes] | None:
    """What undoes a content coding that was not asked for but used all the same; None where there is none."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress
    raise EngineError(
        502, "the engine answered in a content coding that was not asked for: switch it off there", kind="engine_error"
    )


def _content_type(value: str | None) -> str:
    """The media type in lower case, as others compare it; its parameters as they are."""
    media, mark, rest = (value or "application/json").partition(";")
    return media.strip().lower() + mark + rest


def _retry_after(value: str | None) -> int:
    """Seconds of a Retry-After header in either form, 0 without one or with one that makes no sense."""
    if not value:
        return 0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_ms() / 1000
        except (ValueError, OverflowError):
            return 0
    return 0 if math.isnan(seconds) else max(1, math.ceil(min(seconds, _MAX_RETRY_AFTER_S)))
