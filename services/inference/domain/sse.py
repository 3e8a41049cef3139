"""Server-sent events cut out of a byte stream, without touching their bytes."""

import re

MAX_EVENT = 16 << 20
"""Bytes of an event that is not complete yet, above which the stream is given up."""

_BOUNDARY = re.compile(rb"\r?\n\r?\n")
_DATA = b"data:"


class SseError(ValueError):
    """The stream is not server-sent events of a sane size."""


class SseSplitter:
    """Collects bytes and gives whole events, each with the blank line that ends it.

    The events joined, plus `rest`, are exactly the bytes fed.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes. Raises SseError past MAX_EVENT bytes without an end."""
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            events, self._rest = _cut(buffer)
        else:
            parts = buffer.split(b"\n\n")
            self._rest = parts.pop()
            events = [part + b"\n\n" for part in parts]
        if len(self._rest) > MAX_EVENT:
            raise SseError(f"an event of more than {MAX_EVENT} bytes")
        return events

    @property
    def rest(self) -> bytes:
        """What is left of an event that never ended."""
        return self._rest


def _cut(buffer: bytes) -> tuple[list[bytes], bytes]:
    events = []
    start = 0
    for match in _BOUNDARY.finditer(buffer):
        events.append(buffer[start : match.end()])
        start = match.end()
    return events, buffer[start:]


def data_of(event: bytes) -> bytes:
    """The event's data, its lines joined with LF; empty when it has none, as a comment has."""
    if event.startswith(b"data: ") and event.count(b"\n") == 2:
        return event[6:].rstrip()
    lines = [line[len(_DATA) :].removeprefix(b" ") for line in event.splitlines() if line.startswith(_DATA)]
    return b"\n".join(lines)
