"""Closing a connection so that its client reads the answer first."""

from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from services._runtime.health import SHIELD
from services.router.domain.errors import refusal
from services.router.domain.refusals import Refused
from services.router.domain.request import request_id
from services.router.edge.gate import new_id

_SHIELD = "".join(f"{name.lower()}: {value}\r\n" for name, value in SHIELD.items())


class Courteous:
    """The transport of one request that uvicorn serves; ``close`` is asked in the place of its own.

    A connection that is closed on bytes that nobody has read is reset, and its sender never learns why.
    """

    def __init__(self, transport: Any, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.close = close


def last_words(refused: Refused, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The answer to what cannot be served, after which the connection ends; ``headers``: what came of its head."""
    reply = refusal(refused)
    own_id = next((value for name, value in headers if name == b"x-request-id"), None)
    lines = (
        f"x-request-id: {request_id(own_id) or new_id()}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(reply.body)}\r\n{_SHIELD}connection: close\r\n\r\n"
    )
    return STATUS_LINE[reply.status] + lines.encode() + reply.body
