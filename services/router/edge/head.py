"""What a head may hold: nothing that another reader of the same bytes could take for something else. Pure."""

import re
from urllib.parse import unquote_to_bytes

import httptools

from services.router.domain.refusals import BadRequest, HeadTooLarge, Refused, UnsupportedVersion
from services.router.domain.request import PATHS

MAX_HEAD, MAX_HEADERS = 64 << 10, 100
VERSIONS = frozenset({"1.0", "1.1"})

_SINGLE = frozenset({b"authorization", b"host", b"transfer-encoding"})
_UPGRADE = frozenset({b"connection", b"upgrade", b"http2-settings"})
_ROUTES = {path.encode(): route for path, route in PATHS.items()}
_HOST = re.compile(rb"[\w.~!$&'()*+;=%:\[\]-]*", re.ASCII)

Headers = list[tuple[bytes, bytes]]


def check_header(headers: Headers, name: bytes, value: bytes) -> None:
    """One more header of a head; ``name`` in small letters. Raises Refused."""
    if name in _SINGLE:
        if any(known == name for known, _ in headers):
            raise _ambiguous(f"the header {name.decode().title()} came twice: send it once")
        if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise _ambiguous("the only Transfer-Encoding that is taken is chunked: send the body as it is")
        if name == b"host" and not _HOST.fullmatch(value.strip()):
            raise _ambiguous("the header Host is no name or address: send HOST or HOST:PORT")
    if len(headers) >= MAX_HEADERS:
        raise HeadTooLarge(f"there are over {MAX_HEADERS} headers: send fewer")


def check_head(version: str, headers: Headers) -> None:
    """A head that is whole. Raises Refused."""
    if version == "1.1":
        if not any(name == b"host" for name, _ in headers):
            raise _ambiguous("the header Host is missing: HTTP/1.1 wants it")
    elif version not in VERSIONS:
        raise unsupported_version()
    elif any(name == b"transfer-encoding" for name, _ in headers):
        raise _ambiguous("HTTP/1.0 knows no Transfer-Encoding: announce the body by its Content-Length")


def route_of(url: bytes) -> str | None:
    """The route of inference that a request line names, however it spells it; None where it is no such path."""
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):
        path = httptools.parse_url(url).path or b""
    route = _ROUTES.get(path)
    if route is None and (b"%" in path or b"#" in path):
        route = _ROUTES.get(unquote_to_bytes(path.partition(b"#")[0]))
    return route


def without_upgrade(method: bytes, url: bytes, headers: Headers) -> bytes:
    """The head once more, without the wish for another protocol."""
    lines = b"".join(b"%s: %s\r\n" % header for header in headers if header[0] not in _UPGRADE)
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, url, lines)


def unsupported_version() -> Refused:
    """The refusal of a version that is not spoken, or of a request line without one."""
    return UnsupportedVersion("this is neither HTTP/1.1 nor HTTP/1.0: send METHOD PATH HTTP/1.1")


def too_large() -> Refused:
    """The refusal of a head over MAX_HEAD."""
    return HeadTooLarge(f"the request line and headers are over {MAX_HEAD} bytes: send fewer or shorter ones")


def too_much_framing() -> Refused:
    """The refusal of a body whose chunks say more about themselves than they hold."""
    return _ambiguous("the body's chunks hold more framing than content: send larger ones, without extensions")


def _ambiguous(reason: str) -> Refused:
    return BadRequest(reason, code="invalid_http")
