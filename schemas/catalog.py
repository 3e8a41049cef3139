"""Every message by name, so that nothing is forgotten when schemas and golden examples are made and checked."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import msgspec
from pydantic import BaseModel

from schemas import v1
from schemas.v1.alerts import Alert, AuditRecord
from schemas.v1.cloudevent import CloudEvent
from schemas.v1.common import Message
from schemas.v1.control import Command
from schemas.v1.events import (
    ActionRequested,
    ModelProgress,
    ModelRegistered,
    ModelState,
    MonitoringChanged,
    RollbackRequested,
    TestEvent,
)
from schemas.v1.integrations import CALLS, Occasion

EVENTS: dict[str, type[Message]] = {
    "test.started": TestEvent,
    "test.scheduled": TestEvent,
    "test.rollback_scheduled": TestEvent,
    "test.split_changed": TestEvent,
    "test.paused": TestEvent,
    "test.resumed": TestEvent,
    "test.completed": TestEvent,
    "test.rolled_back": TestEvent,
    "test.failed": TestEvent,
    "test.ramped": TestEvent,
    "test.approved": TestEvent,
    "test.stepped_down": TestEvent,
    "test.retried": TestEvent,
    "test.rolling_back": TestEvent,
    "verdict.action": ActionRequested,
    "rollback.requested": RollbackRequested,
    "monitoring.changed": MonitoringChanged,
    "model.state": ModelState,
    "model.progress": ModelProgress,
    "model.registered": ModelRegistered,
    "alert": Alert,
    "audit": AuditRecord,
    **{f"integration.{call}": data for call, data in CALLS.items()},
}
"""Durable events in structured mode: the kind, as `schemas.v1.cloudevent.envelope` takes it, and its data."""

_BASES = (Message, Command, CloudEvent, Occasion)
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def event_type(kind: str) -> str:
    """The CloudEvents type of a kind, which is also its schema's name."""
    return f"cypria.{kind}.v1"


def messages() -> dict[str, type[Any]]:
    """Every message class of v1 by its name. Raises ValueError where two modules use one name."""
    found: dict[str, type[Any]] = {}
    for module in _modules():
        for name, thing in vars(module).items():
            if not _is_message(thing, module):
                continue
            if name in found:
                raise ValueError(f"two messages are named {name}: {found[name].__module__} and {module.__name__}")
            found[name] = thing
    return found


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(v1.__path__):
        yield importlib.import_module(f"{v1.__name__}.{info.name}")


def _is_message(thing: Any, module: ModuleType) -> bool:
    return (
        inspect.isclass(thing)
        and thing.__module__ == module.__name__
        and issubclass(thing, (BaseModel, msgspec.Struct))
        and thing not in _BASES
        and not (issubclass(thing, BaseModel) and thing.__pydantic_generic_metadata__["origin"])
    )


def json_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of every message and every durable event, by name, normalised so that it is the same everywhere."""
    schemas = {name: _normal(_schema_of(message)) for name, message in messages().items()}
    for kind, data in EVENTS.items():
        # pydantic's generics take a type that is only known here
        envelope: Any = CloudEvent.__class_getitem__(data)
        schema = _normal(envelope.model_json_schema())
        schema["properties"]["type"] = {"const": event_type(kind), "type": "string"}
        schemas[event_type(kind)] = schema
    return {
        name: {"$schema": DRAFT, "$id": f"cypria/v1/{name}.json", "title": name, **schema}
        for name, schema in sorted(schemas.items())
    }


def _schema_of(message: type[Any]) -> dict[str, Any]:
    if issubclass(message, BaseModel):
        return message.model_json_schema()
    schema: dict[str, Any] = msgspec.json.schema(message)
    definitions = schema["$defs"]
    own: dict[str, Any] = definitions.pop(message.__name__)
    return {**own, "$defs": definitions} if definitions else own


def _normal(node: Any, *, names: bool = False) -> Any:
    """Without generated titles, and descriptions without the indentation that Python 3.13 strips and others keep.

    ``names`` is true where the keys are names of fields or definitions and not keywords.
    """
    if isinstance(node, list):
        return [_normal(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {}
    for key, value in node.items():
        if names:
            result[key] = _normal(value)
        elif key == "title":
            continue
        elif key == "description":
            result[key] = inspect.cleandoc(value)
        elif key in {"default", "const", "enum"}:
            result[key] = value
        else:
            result[key] = _normal(value, names=key in {"properties", "$defs"})
    return result


def decoder(name: str) -> Callable[[bytes], Any]:
    """Decodes a message or durable event by its schema's name. Raises KeyError for a name that is gone."""
    kinds = {event_type(kind): data for kind, data in EVENTS.items()}
    message: Any = CloudEvent.__class_getitem__(kinds[name]) if name in kinds else messages()[name]
    decode: Callable[[bytes], Any] = (
        message.model_validate_json if issubclass(message, BaseModel) else msgspec.json.Decoder(message).decode
    )
    return decode
