"""Bytes that no honest client sends, each with the answer it must get."""

from tests.e2e.product import KEYS

GOOD = b'{"model": "stable", "messages": [], "max_tokens": 1}'
STREAMED = b'{"model": "stable", "messages": [], "max_tokens": 1, "stream": true}'
MIB = b"x" * (1 << 20)


def head(path: str = "/v1/chat/completions", role: str = "client", version: str = "1.1") -> bytes:
    """The head of a POST, open for further headers."""
    return f"POST {path} HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {KEYS[role]}\r\n".encode()


def sized(body: bytes = GOOD) -> bytes:
    """The end of a head, and the body that it announces."""
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
SMUGGLED = b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
INVALID = [
    head() + b"Content-Length: -1\r\n\r\n" + GOOD,
    head() + b"Content-Length: 99999999999999999999999\r\n\r\n" + GOOD,
    head() + b"Content-Length: 5, 5\r\n\r\n" + GOOD,
    head() + b"Content-Length: %d\r\n" % len(GOOD) + sized(),
    head() + b"Transfer-Encoding: chunked\r\n" + sized(SMUGGLED),
    head() + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    head() + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    head() + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    head() + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    head() + b"X-Request-ID: a\rSet-Cookie: x\r\n" + sized(),
    head() + b"X-Request-ID: a\r\n Set-Cookie: x\r\n" + sized(),
    head() + b"X-Request-ID: a\x00b\r\n" + sized(),
    b"GET /health\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]
TOO_LARGE = [
    start + b"Connection: close\r\n" + body
    for start in (head(), head("/v1/ab-testing/start", "admin"))
    for body in (
        sized(MIB * 11),
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + MIB + b"\r\n") * 11 + b"0\r\n\r\n",
    )
]
