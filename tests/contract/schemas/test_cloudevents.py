"""Durable events conform to CloudEvents 1.0: required attributes, their types, structured and binary mode."""

import json
import re
from datetime import datetime
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import catalog
from schemas.generate import GOLDEN_DIR
from schemas.v1.alerts import Alert
from schemas.v1.cloudevent import CONTENT_TYPE, CloudEvent, binary_headers, dump, envelope
from schemas.v1.common import AlertLevel

REQUIRED = {"specversion", "id", "source", "type"}
OPTIONAL = {"datacontenttype", "dataschema", "subject", "time", "data"}
ATTRIBUTE = re.compile(r"^[a-z0-9]{1,20}$")
EVENTS = sorted(GOLDEN_DIR.glob("cypria.*.json"))


def conforms(event: dict[str, object]) -> None:
    assert set(event) >= REQUIRED
    assert event["specversion"] == "1.0"
    for name in ("id", "source", "type"):
        assert isinstance(event[name], str)
        assert event[name]
    assert not urlsplit(str(event["source"])).fragment
    assert all(ATTRIBUTE.match(name) for name in event)
    if "time" in event:
        assert re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$", str(event["time"]))
        assert datetime.fromisoformat(str(event["time"])).tzinfo is not None


def alert(**fields: object) -> Alert:
    return Alert.model_validate(
        {"incident": "i", "level": AlertLevel.INFO, "title": "t", "message": "m", "at_ms": 1, **fields}
    )


@given(st.text(min_size=1, max_size=80), st.integers(0, 4_000_000_000_000), st.text(max_size=200))
def test_what_is_dumped_conforms_and_reads_back(event_id: str, now_ms: int, message: str) -> None:
    event = envelope("alert", event_id, "monitor", now_ms, alert(message=message), "t1")
    raw = json.loads(dump(event))
    conforms(raw)
    assert set(raw) <= REQUIRED | OPTIONAL
    assert raw["type"] == "cypria.alert.v1"
    assert raw["datacontenttype"] == "application/json"
    assert CloudEvent[Alert].model_validate_json(dump(event)) == event


@pytest.mark.parametrize("path", [p for p in EVENTS if ".full." not in p.name and ".minimal." not in p.name],
                         ids=lambda path: path.name)  # fmt: skip
def test_golden_events_conform(path: object) -> None:
    conforms(json.loads(path.read_text()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", [*sorted(REQUIRED - {"specversion"}), "data"])
def test_an_event_without_a_required_attribute_is_refused(missing: str) -> None:
    raw = json.loads(dump(envelope("alert", "e", "monitor", 1, alert())))
    del raw[missing]
    with pytest.raises(ValidationError, match=missing):
        CloudEvent[Alert].model_validate(raw)


@pytest.mark.parametrize(("name", "value"), [("specversion", "0.3"), ("id", ""), ("source", ""), ("type", ""), ("id", 7)])
def test_an_attribute_of_another_form_is_refused(name: str, value: object) -> None:
    raw = json.loads(dump(envelope("alert", "e", "monitor", 1, alert())))
    with pytest.raises(ValidationError, match=name):
        CloudEvent[Alert].model_validate({**raw, name: value})


def test_extensions_of_others_are_tolerated() -> None:
    raw = {**json.loads(dump(envelope("alert", "e", "monitor", 1, alert()))), "traceparent": "00-0-0-01"}
    assert CloudEvent[Alert].model_validate(raw).id == "e"


def test_binary_mode_has_all_required_attributes_as_headers() -> None:
    headers = binary_headers("facts", "r1.3.17", "router")
    attributes = {name.removeprefix("ce-"): value for name, value in headers.items() if name.startswith("ce-")}
    conforms(dict(attributes))
    assert headers["content-type"] == "application/json"
    assert headers["Nats-Msg-Id"] == attributes["id"]
    assert attributes["type"] == "cypria.facts.v1"


def test_structured_mode_is_named_by_its_media_type() -> None:
    assert CONTENT_TYPE == "application/cloudevents+json"


def test_every_durable_event_has_a_schema_that_pins_its_type() -> None:
    schemas = catalog.json_schemas()
    for kind in catalog.EVENTS:
        schema = schemas[catalog.event_type(kind)]
        assert schema["properties"]["type"]["const"] == f"cypria.{kind}.v1"
        assert set(schema["required"]) >= {"id", "source", "type", "data"}
