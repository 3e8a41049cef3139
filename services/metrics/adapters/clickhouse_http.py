"""ClickHouse's HTTP protocol in front of the embedded engine, for Grafana, analysts and ClickHouse's own clients.

Read-only on loopback with a user and a password. Every request runs on a connection of its own, so that `USE` and
`SET` never leak into another. What is not there: external data, streaming of results, users and roles.
"""

import asyncio
import base64
import binascii
import gzip
import hmac
import json
import os
import re
import ssl
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import chdb
import lz4.frame
from aiohttp import web

from services._runtime.telemetry import get_logger
from services.metrics.adapters import meters
from services.metrics.domain import statements

log = get_logger(__name__)

MAX_BODY = 16 << 20
THREADS = 4
LIMITS = {
    "max_execution_time": "30",
    "max_memory_usage": "1000000000",
    "max_result_bytes": "67108864",
    "max_threads": "2",
    "result_overflow_mode": "throw",
}
"""What one question may take; the engine shares its process with the aggregation."""

_TRANSPORT = frozenset(
    {
        "query", "database", "user", "password", "quota_key", "session_id", "session_timeout", "session_check",
        "query_id", "compress", "decompress", "enable_http_compression", "buffer_size", "wait_end_of_query",
        "default_format", "client_protocol_version", "role", "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
    }
)  # fmt: skip
_READ_ONLY_SETTINGS = frozenset(
    {
        "date_time_input_format", "date_time_output_format", "output_format_json_quote_64bit_integers",
        "output_format_json_quote_denormals", "max_result_rows", "max_block_size",
        "output_format_native_write_json_as_string",
    }
)  # fmt: skip
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_FORMAT = re.compile(rb"\bFORMAT\s+([A-Za-z0-9]+)\s*;?\s*$", re.IGNORECASE)
_CODE = re.compile(r"Code: (\d+)")
_UNAUTHENTICATED, _READONLY = 516, 164


class Front:
    """The HTTP server. ``writable`` lets everything through and exists for tests of the server DSN."""

    def __init__(self, path: str, database: str, user: str, password: str, *, writable: bool = False) -> None:
        self._path = os.path.realpath(path)
        self._database = database
        self._credentials = (user.encode(), password.encode())
        self._writable = writable
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="clickhouse-http")
        self._runner: web.AppRunner | None = None
        self._table_functions: frozenset[str] = frozenset()
        self._timezone = "UTC"
        self.port = 0

    async def start(self, host: str, port: int, secured: ssl.SSLContext | None = None) -> int:
        """Listen; returns the port. Raises OSError when the address is taken."""
        loop = asyncio.get_running_loop()
        self._table_functions = await loop.run_in_executor(self._threads, self._learn)
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/replicas_status", self._ping)
        app.router.add_route("*", "/", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, ssl_context=secured)
        await site.start()
        sockets = site._server.sockets if site._server else []  # type: ignore[attr-defined]  # noqa: SLF001
        self.port = int(sockets[0].getsockname()[1])
        return self.port

    async def stop(self) -> None:
        """Stop listening and wait for what is running."""
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    def _learn(self) -> frozenset[str]:
        connection = chdb.connect(self._path)
        try:
            names = connection.query("SELECT lower(name) FROM system.table_functions", "TSV").bytes().decode().split()
            self._timezone = connection.query("SELECT timezone()", "TSV").bytes().decode().strip()
            return frozenset(names)
        finally:
            connection.close()

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ok.\n")

    async def _handle(self, request: web.Request) -> web.Response:
        query_id = _query_id(request.query.get("query_id"))
        if not self._authorized(request):
            meters.HTTP_QUERIES.labels("unauthorized").inc()
            return self._error(
                f"Code: {_UNAUTHENTICATED}. DB::Exception: Authentication failed: password is incorrect, or there is "
                "no such user. (AUTHENTICATION_FAILED)", query_id, 403,
            )  # fmt: skip
        try:
            body = _inflate(await request.read(), request.headers.get("Content-Encoding", ""))
            statement = _statement(request.query.get("query", ""), body)
            if request.method not in {"GET", "POST"}:
                return self._error(f"Code: {_READONLY}. DB::Exception: method {request.method}", query_id, 405)
            if not self._writable:
                statements.check(statement.decode(), self._table_functions)
            setup = self._setup(request)
        except statements.RefusedError as exc:
            meters.HTTP_QUERIES.labels("refused").inc()
            return self._error(f"Code: {_READONLY}. DB::Exception: {exc}. (READONLY)", query_id, 500)
        except (ValueError, OSError, RuntimeError, zlib.error) as exc:
            meters.HTTP_QUERIES.labels("malformed").inc()
            return self._error(f"Code: 62. DB::Exception: {_reason(exc)}. (SYNTAX_ERROR)", query_id, 400)
        parameters = {name[6:]: value for name, value in request.query.items() if name.startswith("param_")}
        default = request.query.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated"
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._run, setup, statement, default, parameters
            )
        except RuntimeError as exc:
            meters.HTTP_QUERIES.labels("failed").inc()
            return self._error(str(exc), query_id, 500)
        meters.HTTP_QUERIES.labels("answered").inc()
        embedded = _FORMAT.search(statement[-100:])
        return self._reply(result, embedded.group(1).decode() if embedded else default, query_id)

    def _authorized(self, request: web.Request) -> bool:
        user = request.headers.get("X-ClickHouse-User", "")
        password = request.headers.get("X-ClickHouse-Key", "")
        header = request.headers.get("Authorization", "")
        if header.lower().startswith("basic "):
            try:
                user, _, password = base64.b64decode(header[6:], validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return False
        same_user = hmac.compare_digest(user.encode(), self._credentials[0])
        return hmac.compare_digest(password.encode(), self._credentials[1]) and same_user

    def _setup(self, request: web.Request) -> list[str]:
        """Statements that make the connection what the request asks for. Raises ValueError."""
        database = request.query.get("database") or request.headers.get("X-ClickHouse-Database") or self._database
        if not _NAME.match(database):
            raise ValueError("database: not a name of letters, digits and _")
        settings = {} if self._writable else dict(LIMITS)
        for name, value in request.query.items():
            if name in _TRANSPORT or name.startswith("param_"):
                continue
            if not _NAME.match(name):
                raise ValueError("a setting's name may hold only letters, digits and _")
            if self._writable or name in _READ_ONLY_SETTINGS:
                settings[name] = value
        found = [f"SET {name} = {_quoted(value)}" for name, value in settings.items()]
        found.append(f"USE {database}")
        if not self._writable:
            found.append("SET readonly = 1")
        return found

    def _run(self, setup: list[str], statement: bytes, form: str, parameters: dict[str, str]) -> Any:
        connection = chdb.connect(self._path)
        try:
            for step in setup:
                connection.query(step)
            result = connection.query(statement if self._writable else statement.decode(), form, params=parameters)
            return result.bytes() or b"", result.rows_read(), result.bytes_read(), result.elapsed()
        finally:
            connection.close()

    def _reply(self, result: tuple[bytes, int, int, float], form: str, query_id: str) -> web.Response:
        body, rows, size, elapsed = result
        summary = {
            "read_rows": str(rows), "read_bytes": str(size), "written_rows": "0", "written_bytes": "0",
            "total_rows_to_read": "0", "result_rows": "0", "result_bytes": str(len(body)),
            "elapsed_ns": str(int(elapsed * 1e9)),
        }  # fmt: skip
        headers = {
            "X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Format": form, "X-ClickHouse-Timezone": self._timezone,
            "X-ClickHouse-Server-Display-Name": "cypria", "X-ClickHouse-Summary": json.dumps(summary),
            "Cache-Control": "no-store",
        }  # fmt: skip
        kind = "application/json" if form.startswith("JSON") else "text/plain; charset=UTF-8"
        return web.Response(body=body, headers={**headers, "Content-Type": kind})

    def _error(self, text: str, query_id: str, status: int) -> web.Response:
        start = text.find("Code: ")
        text = text[start:] if start > 0 else text
        code = _CODE.search(text)
        headers = {
            "X-ClickHouse-Query-Id": query_id, "X-ClickHouse-Exception-Code": code.group(1) if code else "1000",
            "X-ClickHouse-Timezone": self._timezone,
        }  # fmt: skip
        if status == 403:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse"'
        return web.Response(status=status, text=text + "\n", headers=headers)


def _query_id(given: str | None) -> str:
    return given if given and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(uuid.uuid4())


def _statement(query: str, body: bytes) -> bytes:
    """The statement: the parameter, the body, or the first followed by the second (an INSERT and its data)."""
    statement = query.encode() + (b"\n" if query and body else b"") + body
    if not statement.strip():
        raise ValueError("empty query")
    return statement


def _inflate(body: bytes, encoding: str) -> bytes:
    """The body as it was before compression, at most MAX_BODY of it. Raises ValueError."""
    if not body or encoding in {"", "identity"}:
        return body
    if encoding == "lz4":
        inflated, _, done = _lz4(body)
    elif encoding in {"gzip", "deflate"}:
        # aiohttp has already inflated these, unless the bytes were something else.
        return gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    elif encoding in {"zstd", "br"}:
        return body
    else:
        raise ValueError(f"Content-Encoding {encoding[:20]!r}: send lz4, gzip, deflate or nothing")
    if not done:
        raise ValueError(f"the body is incomplete or larger than {MAX_BODY} bytes")
    return inflated


def _lz4(body: bytes) -> tuple[bytes, bytes | None, bool]:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    inflated = decompressor.decompress(body, max_length=MAX_BODY)
    return inflated, decompressor.unused_data, decompressor.eof


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _reason(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:200]
