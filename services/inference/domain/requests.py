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


class _Schema(msgspec.Struct):
    schema: Raw = Raw()


class _Format(msgspec.Struct):
    type: str | None = None
    json_schema: _Schema | None = None
    schema: Raw = Raw()
    value: Raw = Raw()


class _Structured(msgspec.Struct):
    json: Raw = Raw()
    json_object: bool | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    parameters: Raw = Raw()


class _Tool(msgspec.Struct):
    function: _Function | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    tools: list[_Tool] | None = None
    functions: list[_Function] | None = None
    tool_choice: Any = None
    structured_outputs: _Structured | None = None
    guided_json: Raw = Raw()


class Wants(msgspec.Struct, frozen=True):
    """What the caller asked for, as far as the reply is judged by it.

    ``tools`` are the names a tool call may have; None when no tools were offered. ``parameters`` are the schemas of
    their arguments, and ``schema`` that of the answer, as JSON where they were given; ``must_call``: an answer without
    a call of a tool is none.
    """

    model: str = ""
    stream: bool = False
    include_usage: bool = False
    json: bool = False
    tools: frozenset[str] | None = None
    parameters: dict[str, bytes] = {}
    schema: bytes = b""
    must_call: bool = False


_body = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(dict[str, Raw])
_encode = msgspec.json.Encoder().encode
_JSON_FORMATS = frozenset({"json_object", "json_schema", "json"})
_ANY_OBJECT = b'{"type":"object"}'
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FORCED = frozenset({"function", "custom"})
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
    except _UNREADABLE as exc:
        raise BadRequestError(f"the body is not valid JSON: {exc}") from None
    functions = [tool.function for tool in parsed.tools or () if tool.function] + (parsed.functions or [])
    schema = _schema(parsed)
    return Wants(
        model=parsed.model or "",
        stream=bool(parsed.stream),
        include_usage=bool(parsed.stream_options and parsed.stream_options.include_usage),
        json=schema is not None,
        tools=frozenset([function.name for function in functions if function.name]) if functions else None,
        parameters={f.name: given for f in functions if f.name and (given := _given(f.parameters))},
        schema=schema or b"",
        must_call=bool(functions) and _is_forced(parsed.tool_choice),
    )


def _schema(parsed: _Body) -> bytes | None:
    """The schema of the JSON that is asked for, empty when any will do; None when none is asked for."""
    form, structured = parsed.response_format, parsed.structured_outputs
    if form is not None and form.type in _JSON_FORMATS:
        named = form.json_schema.schema if form.json_schema is not None else form.schema
        return _given(named) or _given(form.value) or (_ANY_OBJECT if form.type == "json_object" else b"")
    given = b""
    if structured is not None:
        given = _given(structured.json) or (_ANY_OBJECT if structured.json_object else b"")
    return given or _given(parsed.guided_json) or None


def _given(value: Raw) -> bytes:
    """The value's own bytes, none for null; not a view, which would keep the whole body."""
    found = bytes(value)
    return b"" if found == b"null" else found


def _is_forced(choice: Any) -> bool:
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") in _FORCED)


def fields(body: bytes) -> dict[str, Raw]:
    """The body's top-level fields, each value as its own bytes. Raises BadRequestError."""
    try:
        return _fields.decode(body)
    except msgspec.ValidationError:
        raise BadRequestError("the body must be a JSON object") from None
    except _UNREADABLE as exc:
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
    except _UNREADABLE:
        return options
    merged["include_usage"] = True
    return Raw(_encode(merged))
