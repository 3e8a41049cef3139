"""What a worker reads of a request's body, and the few changes it makes before an engine sees it."""

from typing import Any

import msgspec

Raw = msgspec.Raw


class BadRequestError(ValueError):
    """The caller's own error: answered with 400, ``code`` and ``param`` as OpenAI has them."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Format(msgspec.Struct):
    type: str | None = None


class _Function(msgspec.Struct):
    name: str | None = None


class _Tool(msgspec.Struct):
    function: _Function | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    tools: list[_Tool] | None = None


class Wants(msgspec.Struct, frozen=True):
    """What the caller asked for, as far as the reply is judged by it.

    ``tools`` are the names a tool call may have; None when no tools were offered.
    """

    model: str = ""
    stream: bool = False
    include_usage: bool = False
    json: bool = False
    tools: frozenset[str] | None = None


_body = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
_JSON_FORMATS = frozenset({"json_object", "json_schema"})
_WITH_USAGE = Raw(b'{"include_usage":true}')


def read(body: bytes) -> Wants:
    """What ``body`` asks for. Raises BadRequestError when it is not a JSON object.

    A field of another type than expected is the engine's to refuse, so nothing is read into it here.
    """
    try:
        parsed = _body.decode(body)
    except msgspec.ValidationError:
        fields(body)
        return Wants()
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequestError(f"the body is not valid JSON: {exc}") from None
    tools = None
    if parsed.tools:
        tools = frozenset(tool.function.name for tool in parsed.tools if tool.function and tool.function.name)
    return Wants(
        model=parsed.model or "",
        stream=bool(parsed.stream),
        include_usage=bool(parsed.stream_options and parsed.stream_options.include_usage),
        json=parsed.response_format is not None and parsed.response_format.type in _JSON_FORMATS,
        tools=tools,
    )


def fields(body: bytes) -> dict[str, Raw]:
    """The body's top-level fields, each value as its own bytes. Raises BadRequestError."""
    try:
        return _fields.decode(body)
    except msgspec.ValidationError:
        raise BadRequestError("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequestError(f"the body is not valid JSON: {exc}") from None


def for_upstream(body: bytes, wants: Wants, upstream_model: str, *, ask_usage: bool) -> bytes:
    """``body`` with the upstream's model name, and for a stream asking for usage; untouched when both hold.

    Every other value keeps its bytes, fields that nobody here knows included.
    """
    rename = wants.model != upstream_model
    add_usage = ask_usage and not wants.include_usage
    if not rename and not add_usage:
        return body
    values = fields(body)
    if rename:
        values["model"] = Raw(_encode(upstream_model))
    if add_usage:
        values["stream_options"] = _merged(values.get("stream_options"))
    return _encode(values)


def _merged(options: Raw | None) -> Raw:
    if options is None or bytes(options) == b"null":
        return _WITH_USAGE
    try:
        merged: dict[str, Any] = _fields.decode(options)
    except msgspec.DecodeError:
        return options
    merged["include_usage"] = True
    return Raw(_encode(merged))
