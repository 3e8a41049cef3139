"""The msgspec reading of a message and the pydantic one agree, in what they accept and in what they read."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from schemas.v1 import facts as fact_models
from schemas.v1 import windows as window_models
from services.metrics.adapters import wire
from services.metrics.domain import records
from tests.unit.metrics.facts import batch, fact, facts

PAIRS = [
    (records.Fact, fact_models.Fact), (records.Admitted, fact_models.Admitted), (records.TestClock, fact_models.TestClock),
    (records.FactBatch, fact_models.FactBatch), (records.Feedback, fact_models.Feedback), (records.Moments, window_models.Moments),
    (records.UnitEvidence, window_models.UnitEvidence), (records.Bucket, window_models.Bucket),
    (records.Cell, window_models.Cell), (records.Watermark, window_models.Watermark),
    (records.NewUnits, window_models.NewUnits), (records.Window, window_models.Window),
]  # fmt: skip


@pytest.mark.parametrize(("struct", "model"), PAIRS, ids=lambda c: c.__name__)
def test_same_fields_and_defaults(struct: type[msgspec.Struct], model: type[BaseModel]) -> None:
    mine = {f.name: f for f in msgspec.structs.fields(struct)}
    assert set(mine) == set(model.model_fields)
    for name, field in model.model_fields.items():
        assert (mine[name].required) == field.is_required(), name


@given(st.lists(facts, max_size=8), st.integers(1, 10**9))
@settings(max_examples=50, deadline=None)
def test_a_batch_reads_the_same(items: list[fact_models.Fact], n: int) -> None:
    message = batch(n, items)
    for text in (message.model_dump_json(), message.model_dump_json(exclude_defaults=True)):
        mine, reasons = wire.decode_batch(text.encode(), 0)
        assert reasons == []
        assert msgspec.to_builtins(mine) == fact_models.FactBatch.model_validate_json(text).model_dump()


BAD_FACTS: list[dict[str, Any]] = [
    {"variant": "B"}, {"variant": "bb"}, {"unit": "xyz"}, {"unit": "0" * 15}, {"unit": "0" * 17}, {"unit": "0X" + "0" * 14},
    {"unit": "A" * 16}, {"unit": "0" * 16 + "\n"}, {"share_bp": -1}, {"share_bp": 10_001}, {"kind": "x"}, {"outcome": "nope"},
    {"latency_us": -1}, {"latency_us": "x"}, {"stratum": 64}, {"test": None}, {"cost_nano": -5}, {"digest": 3},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_FACTS, ids=str)
def test_what_the_contract_refuses_is_refused_alone(change: dict[str, Any]) -> None:
    good = fact(2).model_dump(mode="json")
    bad = {**good, **change}
    with pytest.raises(ValidationError):
        fact_models.Fact.model_validate_json(json.dumps(bad))
    raw = {"router_epoch": "r", "partition": 0, "n": 1, "facts": [good, bad, good]}
    read, reasons = wire.decode_batch(json.dumps(raw).encode(), 0)
    assert len(read.facts) == 2
    assert len(reasons) == 1
    assert reasons[0].startswith("facts[1]:")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"router_epoch":"","partition":0,"n":1}', b'{"router_epoch":"r","partition":0,"n":0}',
     b'{"router_epoch":"r","partition":3,"n":1}', b'{"partition":0,"n":1}', b'{"router_epoch":"r","partition":0,"n":"1"}'],
)  # fmt: skip
def test_a_batch_that_is_none_is_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(wire.BadMessageError):
        wire.decode_batch(data, 0)


def test_a_bad_admission_does_not_lose_the_facts() -> None:
    raw = {
        "router_epoch": "r", "partition": 0, "n": 1, "facts": [fact(1).model_dump(mode="json")],
        "admitted": [{"test": "t", "variant": "a", "share_bp": 1, "count": 0}],
    }  # fmt: skip
    read, reasons = wire.decode_batch(json.dumps(raw).encode(), 0)
    assert len(read.facts) == 1
    assert reasons[0].startswith("admitted[0]:")


def test_a_window_reads_back_as_it_was_written() -> None:
    window = records.Window(
        partition=3, writer="m", watermark=records.Watermark("c", 7, 8, {"r": 2}), rebuild_from=4,
        cells=[records.Cell(test="t", variant="b", share_bp=5, latency=records.Moments(n=1, squares=10**30, bins={3: 1}),
                            outcomes={fact_models.Outcome.OK: 1}, buckets={5: records.Bucket(n=1)})],
        new_units=[records.NewUnits("t", 0, seen="AAAA")],
    )  # fmt: skip
    data = wire.encode_window(window)
    assert wire.decode_window(data) == window
    assert wire.decode_new_units(data) == window.new_units
    model = window_models.Window.model_validate_json(data)
    assert model.cells[0].latency.squares == 10**30
    assert wire.decode_window(model.model_dump_json().encode()) == window
