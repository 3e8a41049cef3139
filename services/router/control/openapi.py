"""The OpenAPI document: every endpoint of the edge with what it takes, what it answers and every way it refuses."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from services.router.control.verbs import VERBS, Verb

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    400: "Not a JSON object, or it makes no sense",
    401: "No good key",
    403: "The key's role is too small, or the address is kept out",
    404: "No such thing, or nothing running",
    405: "Another method",
    409: "It does not fit the present state",
    410: "It is not kept any more",
    413: "The body is too large",
    415: "The body is compressed",
    422: "A value out of range, of another type, or an unknown field",
    429: "Over the rate limit: wait as long as `Retry-After` says",
    431: "The headers are too large",
    500: "Something went wrong inside",
    503: "A part that is needed does not answer now",
    504: "A part that is needed took too long",
}
EXAMPLES: Mapping[str, dict[str, Any]] = {
    "start": {
        "model_a": "meta-llama/Meta-Llama-3.1-8B-Instruct", "model_b": "meta-llama/Meta-Llama-3.1-8B-Instruct-v2",
        "traffic_split_percent": 10.0, "test_duration_minutes": 60, "auto_rollback": True,
    },
    "traffic-split": {"traffic_split_percent": 5.0},
    "feedback": {"token": "what X-AB-Feedback-Token of the response says", "thumbs": "up"},
    "units-export": {"unit": "user-1"},
    "units-erase": {"unit": "user-1"},
    "keys-create": {"name": "grafana", "role": "viewer"},
    "models-register": {"name": "candidate", "engine": "openai", "base_url": "http://127.0.0.1:8000/v1"},
    "models-plan": {"models": [{"name": "candidate", "engine": "openai", "base_url": "http://127.0.0.1:8000/v1"}]},
}  # fmt: skip
"""Bodies to begin with where something is required; elsewhere an empty one does."""
_SAID: Mapping[str, dict[str, Any]] = {
    "chat_completions": {"model": "stable", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
    "completions": {"model": "stable", "prompt": "Once upon a time", "max_tokens": 32},
    "embeddings": {"model": "stable", "input": "Hello"},
    "generate": {"model": "stable", "prompt": "Once upon a time", "max_tokens": 32},
}
ALWAYS = (401, 403, 405, 429, 500, 503)
_INFERENCE = (400, 401, 403, 404, 405, 413, 415, 429, 431, 500, 503, 504)
_ASSIGNED = {
    "X-Request-ID": "The caller's own, or a new one",
    "X-AB-Test-ID": "The test that the request was assigned to, if any",
    "X-AB-Test-Variant": "`a` or `b`",
    "X-AB-Feedback-Token": "For `POST /v1/ab-testing/feedback`",
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "state"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "state": {"type": "string"},
    },
}


def documented(verb: Verb) -> dict[str, Any]:
    """What FastAPI cannot see: parameters and body of a verb, its errors and its key."""
    errors = {*ALWAYS, 422, *verb.errors, *({400, 413, 415} if verb.method != "GET" else ())}
    extra: dict[str, Any] = {
        "description": f"Role: `{verb.role.label}`.", "security": [{"key": []}], "responses": _refusals(sorted(errors)),
    }  # fmt: skip
    schema = flat(verb.takes)
    required = set(schema.get("required", []))
    in_path = {name for name in verb.takes.model_fields if "{" + name in verb.path}
    others = [name for name in verb.takes.model_fields if name not in in_path and name not in verb.of_headers]
    parameters = [_parameter("path", name, schema, required=True) for name in sorted(in_path)]
    in_query = others if verb.method == "GET" else verb.in_query
    parameters += [_parameter("query", name, schema, required=name in required) for name in in_query]
    if verb.method != "GET" and others:
        bare = {key: value for key, value in schema.items() if key != "required"}
        body = {**bare, "properties": {n: s for n, s in schema["properties"].items() if n not in in_path}}
        if required - in_path:
            body["required"] = sorted(required - in_path)
        content = {"schema": body, "example": EXAMPLES.get(verb.name, {})}
        extra["requestBody"] = {"required": bool(required - in_path), "content": {"application/json": content}}
    if parameters:
        extra["parameters"] = parameters
    return extra


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document, made once."""
    if not app.openapi_schema:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        made.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for verb in VERBS:  # {name:path} is the router's own spelling
            plain = verb.http_path.replace(":path}", "}")
            if plain not in made["paths"] and verb.http_path in made["paths"]:
                made["paths"][plain] = made["paths"].pop(verb.http_path)
        made["paths"] |= {**_inference(), **_operations()}
        app.openapi_schema = made
    return app.openapi_schema


def flat(model: type[BaseModel]) -> dict[str, Any]:
    """The model's JSON Schema with its definitions put in place, as a part of an OpenAPI document needs them."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return inline(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: inline(value) for key, value in node.items()}
        return [inline(item) for item in node] if isinstance(node, list) else node

    found: dict[str, Any] = inline(schema)
    return found


def _parameter(where: str, name: str, schema: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema["properties"][name]}


def _refusals(statuses: Any) -> dict[str, Any]:
    return {
        str(status): {"description": STATUSES[status], "content": {"application/json": {"schema": ERROR}}}
        for status in statuses
    }


def _inference() -> dict[str, Any]:
    """Requests to models: the bodies are OpenAI's and the engine's, and pass through."""
    body = {
        "type": "object",
        "required": ["model"],
        "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}, "user": {"type": "string"}},
        "additionalProperties": True,
    }
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _ASSIGNED.items()}
    anything = {"schema": {"type": "object", "additionalProperties": True}}
    answer = {
        "description": "The engine's answer, whole or as server-sent events",
        "headers": headers,
        "content": {"application/json": anything, "text/event-stream": {"schema": {"type": "string"}}},
    }
    failed = {"description": "The engine's own error, with its status", "headers": headers,
              "content": {"application/json": anything}}  # fmt: skip
    paths: dict[str, Any] = {}
    for path, name, summary in (
        ("/v1/chat/completions", "chat_completions", "Chat"), ("/v1/completions", "completions", "Complete a prompt"),
        ("/v1/embeddings", "embeddings", "Embed texts"), ("/generate", "generate", "Complete a prompt (legacy)"),
    ):  # fmt: skip
        paths[path] = {
            "post": {
                "tags": ["inference"], "summary": summary, "operationId": name, "security": [{"key": []}],
                "description": "Role: `client`. A request whose `model` is a running test's `model_a` is assigned.",
                "requestBody": {
                    "required": True, "content": {"application/json": {"schema": body, "example": _SAID[name]}},
                },
                "responses": {"200": answer, **_refusals(_INFERENCE), "default": failed},
            }
        }  # fmt: skip
    listed = {
        "type": "object", "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
    }  # fmt: skip
    named: dict[str, Any] = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/v1/models"] = {"get": _read("list_models", "The models that clients may name", listed, ALWAYS)}
    paths["/v1/models/{model}"] = {
        "get": {**_read("get_model", "One of them", _MODEL, (*ALWAYS, 404)), "parameters": [named]}
    }
    return paths


def _read(operation: str, summary: str, schema: dict[str, Any], errors: tuple[int, ...]) -> dict[str, Any]:
    good = {"200": {"description": "Done", "content": {"application/json": {"schema": schema}}}}
    return {
        "tags": ["inference"], "summary": summary, "operationId": operation, "security": [{"key": []}],
        "description": "Role: `client`.", "responses": {**good, **_refusals(errors)},
    }  # fmt: skip


def _operations() -> dict[str, Any]:
    """What needs no key."""
    word = {"type": "object", "required": ["status", "service"],
            "properties": {"status": {"type": "string"}, "service": {"type": "string"}}}  # fmt: skip
    ready = {**word, "properties": {**word["properties"], "missing": {"type": "object"}}}  # type: ignore[dict-item]
    paths: dict[str, Any] = {}
    for path, summary, media, schema in (
        ("/health", "Whether the process is alive", "application/json", word),
        ("/ready", "Whether it can serve; else what is missing", "application/json", ready),
        ("/metrics", "Figures for Prometheus", "text/plain", {"type": "string"}),
        ("/docs", "These pages", "text/html", {"type": "string"}),
        ("/dashboard", "The live page; it asks for a key itself", "text/html", {"type": "string"}),
        ("/openapi.json", "This document", "application/json", {"type": "object"}),
        ("/asyncapi.yaml", "The bus, as an AsyncAPI document", "application/yaml", {"type": "object"}),
    ):
        responses: dict[str, Any] = {"200": {"description": "Done", "content": {media: {"schema": schema}}}}
        if path == "/ready":
            responses["503"] = {"description": "Something is missing", "content": {media: {"schema": schema}}}
        paths[path] = {
            "get": {
                "tags": ["operations"], "summary": summary, "operationId": path[1:].replace(".", "_"), "security": [],
                "responses": {**responses, **_refusals((405,))},
            }
        }  # fmt: skip
    return paths
