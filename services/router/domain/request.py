"""The few things that the router reads of a request; everything else passes through as bytes."""

import re

import msgspec

from services.router.domain.refusals import BadRequest

MAX_REQUEST_ID = 128
MAX_UNIT = 4096

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
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        if not body:
            reason = "it is empty"
        raise BadRequest(f"the body is not valid JSON: {reason}", code="invalid_json") from None


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
