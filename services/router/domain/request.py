"""The few things that the router reads of a request; everything else passes through as bytes."""

import re

import msgspec

from services.router.domain.json_words import why_no_json
from services.router.domain.refusals import BadRequest

MAX_REQUEST_ID = 128

PATHS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/generate": "generate",
}
"""Inference paths and the route that workers know them by."""


class Peek(msgspec.Struct):
    """The fields of a body that routing depends on."""

    model: str | None = None
    stream: bool | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


_decode = msgspec.json.Decoder(Peek).decode
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)
_MARK = b"\xef\xbb\xbf"
_HIGH, _LOW = rb"\\u[dD][89aAbB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE = re.compile(_HIGH + rb"(?!" + _LOW + rb")|(?<!" + _HIGH + rb")" + _LOW)
_FIELD_BEFORE = re.compile(rb'"(?P<field>\w{1,64})"\s*:\s*"(?:[^"\\]|\\.)*\Z')
_LOOK_BACK = 1024
_SEARCHED = 256 << 10
"""How far into a body the cause is looked for: the loop serves others meanwhile."""
_KINDS = {"str": "a string", "bool": "true or false", "object": "an object", "null": "null"}


def read(body: bytes) -> Peek:
    """Raises BadRequest (400), naming the field, when the body is not a JSON object or a field has another type."""
    try:
        if not body.isascii():
            body.decode()  # unread strings are not checked by the decoder
        return _decode(body)
    except msgspec.ValidationError as exc:
        raise _wrong_type(str(exc)) from None
    except UnicodeDecodeError as exc:
        raise BadRequest(
            f"the body is not valid UTF-8 (byte {exc.start}): encode it as UTF-8", code="invalid_utf8"
        ) from None
    except (msgspec.DecodeError, RecursionError) as exc:
        raise _malformed(body, exc) from None


def _malformed(body: bytes, exc: Exception) -> BadRequest:
    field = None
    if isinstance(exc, RecursionError):
        reason = "it is nested too deeply"
    elif not body.strip():
        reason = "it is empty"
    elif body.startswith(_MARK):
        reason = "it begins with a byte order mark: send it without"
    elif lone := _LONE_SURROGATE.search(body, 0, _SEARCHED):
        # Half a character: no engine could read it, and the decoder's own words for it mislead.
        owner = _FIELD_BEFORE.search(body, max(0, lone.start() - _LOOK_BACK), lone.start())
        field = owner.group("field").decode() if owner else None
        reason = f"a surrogate without its other half (byte {lone.start()}): send whole characters"
    else:
        reason = why_no_json(str(exc))
    return BadRequest(f"the body is not valid JSON: {reason}", param=field, code="invalid_json")


def _wrong_type(text: str) -> BadRequest:
    match = _WHERE.match(text)
    field = match.group("field") if match else None
    if not field:
        return BadRequest("the body must be a JSON object", code="invalid_type")
    want = text.split("`")[1].split(" | ", maxsplit=1)[0] if "`" in text else "str"
    kind = _KINDS.get(want, want)
    return BadRequest(f"'{field}' must be {kind}: send it as such or leave it out", param=field, code="invalid_type")


def request_id(given: bytes | None) -> str | None:
    """The caller's own request id where it can go into a header and a log line, else None."""
    if not given or len(given) > MAX_REQUEST_ID or not given.isascii():
        return None
    text = given.decode()
    return text if text.isprintable() else None
