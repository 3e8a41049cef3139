"""The check for breaking changes detects each kind of them and nothing else."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas import catalog, compat, generate
from schemas.compat import breaking, load
from schemas.generate import JSON_DIR, render

Schema = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]

BASE: Schema = {
    "type": "object",
    "required": ["id", "level"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 10},
        "level": {"$ref": "#/$defs/Level"},
        "share": {"type": "integer", "minimum": 0, "maximum": 100, "default": 5},
        "ratio": {"type": "number", "exclusiveMinimum": 0, "default": 0.5},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "tags": {"type": "object", "additionalProperties": {"type": "string"}},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/Part"}},
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}], "maxItems": 2},
        "word": {"type": "string", "pattern": "^[a-z]$", "default": "a"},
        "any": {},
    },
    "$defs": {
        "Level": {"type": "string", "enum": ["low", "high"]},
        "Part": {"type": "object", "properties": {"n": {"type": "integer"}, "next": {
            "anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}]}}},
    },
}  # fmt: skip

Change = Callable[[Schema, Schema], object]


def after(change: Change) -> list[str]:
    new = copy.deepcopy(BASE)
    change(new, new["properties"])
    return breaking({"M": copy.deepcopy(BASE)}, {"M": new})


BREAKING: list[tuple[str, Change, str]] = [
    ("field removed", lambda _s, p: p.pop("note"), "M.note: the field is gone"),
    ("field removed deep inside", lambda s, _p: s["$defs"]["Part"]["properties"].pop("n"), "M.parts[].n: the field is gone"),
    ("field renamed", lambda _s, p: p.update(remark=p.pop("note")), "M.note: the field is gone"),
    ("new required field", lambda s, p: (p.update(x={"type": "string"}), s["required"].append("x")), "M.x: is a new required"),
    ("field made required", lambda s, _p: s["required"].append("share"), "M.share: is required now"),
    ("type changed", lambda _s, p: p.update(share={"type": "string", "default": 5}), "M.share: type changed from integer to string"),
    ("type narrowed", lambda _s, p: p["ratio"].update(type="integer"), "M.ratio: type changed from number to integer"),
    ("any value narrowed", lambda _s, p: p.update(any={"type": "string"}), "M.any: type changed from any value"),
    ("null not allowed any more", lambda _s, p: p.update(note={"type": "string"}), "M.note: null is not accepted"),
    ("optional type changed", lambda _s, p: p["note"].update(anyOf=[{"type": "integer"}, {"type": "null"}]), "M.note: string"),
    ("value type of a dictionary", lambda _s, p: p["tags"].update(additionalProperties={"type": "integer"}), "M.tags[]: type"),
    ("elements restricted", lambda _s, p: p["parts"].update(items={"type": "string"}), "M.parts[]: type changed"),
    ("tuple length", lambda _s, p: p["pair"].update(prefixItems=[{"type": "integer"}]), "M.pair[]: has 1 fixed"),
    ("enumeration narrowed", lambda s, _p: s["$defs"]["Level"].update(enum=["low"]), "M.level: high not accepted"),
    ("enumeration introduced", lambda _s, p: p["id"].update(enum=["x"]), "M.id: any other value not accepted"),
    ("constant introduced", lambda _s, p: p["id"].update(const="x"), "M.id: any other value not accepted"),
    ("minimum raised", lambda _s, p: p["share"].update(minimum=1), "M.share: minimum narrowed from 0 to 1"),
    ("maximum lowered", lambda _s, p: p["share"].update(maximum=99), "M.share: maximum narrowed from 100 to 99"),
    ("limit introduced", lambda _s, p: p["ratio"].update(maximum=1), "M.ratio: maximum narrowed from none to 1"),
    ("exclusive limit raised", lambda _s, p: p["ratio"].update(exclusiveMinimum=0.1), "M.ratio: exclusiveMinimum"),
    ("text shorter", lambda _s, p: p["id"].update(maxLength=9), "M.id: maxLength narrowed"),
    ("text longer at least", lambda _s, p: p["id"].update(minLength=2), "M.id: minLength narrowed"),
    ("pattern changed", lambda _s, p: p["word"].update(pattern="^[a-c]$"), "M.word: pattern changed"),
    ("pattern introduced", lambda _s, p: p["id"].update(pattern="^x"), "M.id: pattern changed from none"),
    ("list bounded", lambda _s, p: p["parts"].update(maxItems=3), "M.parts: maxItems narrowed"),
    ("unknown fields refused", lambda s, _p: s.update(additionalProperties=False), "M: unknown fields are refused"),
    ("default changed", lambda _s, p: p["share"].update(default=6), "M.share: default changed from 5 to 6"),
]  # fmt: skip

HARMLESS: list[tuple[str, Change]] = [
    ("nothing", lambda _s, _p: None),
    ("optional field added", lambda _s, p: p.update(x={"type": "string", "default": ""})),
    ("field made optional", lambda s, _p: s["required"].remove("id")),
    ("enumeration widened", lambda s, _p: s["$defs"]["Level"]["enum"].append("middle")),
    ("integer widened to number", lambda _s, p: p["share"].update(type="number")),
    ("null allowed", lambda _s, p: p.update(id={"anyOf": [p["id"], {"type": "null"}]})),
    ("limits widened", lambda _s, p: p["share"].update(minimum=-5, maximum=1000)),
    ("limit dropped", lambda _s, p: p["id"].pop("maxLength")),
    ("pattern dropped", lambda _s, p: p["word"].pop("pattern")),
    ("description changed", lambda s, _p: s.update(description="other words")),
    ("definition renamed", lambda s, p: (s["$defs"].update(L=s["$defs"].pop("Level")), p.update(level={"$ref": "#/$defs/L"}))),
    ("definition inlined", lambda s, p: p.update(level=s["$defs"].pop("Level"))),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in BREAKING], ids=[row[0] for row in BREAKING])
def test_a_breaking_change_is_named(change: Change, words: str) -> None:
    problems = after(change)
    assert any(problem.startswith(words) for problem in problems), problems


@pytest.mark.parametrize("change", [row[1] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_a_harmless_change_passes(change: Change) -> None:
    assert after(change) == []


def test_a_message_that_is_gone_is_breaking_and_a_new_one_is_not() -> None:
    assert breaking({"M": BASE}, {}) == ["M: the message is gone"]
    assert breaking({}, {"M": BASE}) == []


def test_todays_schemas_break_nothing_of_themselves_and_a_real_removal_is_found() -> None:
    schemas = catalog.json_schemas()
    assert breaking(schemas, schemas) == []
    changed = copy.deepcopy(schemas)
    del changed["Alert"]["properties"]["incident"]
    del changed["cypria.alert.v1"]["$defs"]["Alert"]["properties"]["incident"]
    assert breaking(schemas, changed) == [
        "Alert.incident: the field is gone", "cypria.alert.v1.data.incident: the field is gone"
    ]  # fmt: skip


def test_generation_refuses_a_breaking_change_and_writes_nothing(tmp_path: Path) -> None:
    json_dir, golden_dir = tmp_path / "json", tmp_path / "golden"
    assert generate.write(json_dir, golden_dir) == []
    assert load(json_dir) == catalog.json_schemas()
    path = json_dir / "Alert.json"
    was = json.loads(path.read_text())
    was["properties"]["gone_since"] = {"type": "string"}
    path.write_text(render(was))
    assert generate.write(json_dir, golden_dir) == ["Alert.gone_since: the field is gone"]
    assert json.loads(path.read_text()) == was


def test_generation_is_deterministic(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        code = f"from pathlib import Path; from schemas import generate; generate.write(Path({str(folder / 'j')!r}), Path({str(folder / 'g')!r}))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONHASHSEED": str(seed), "PATH": ""})
    one, two = ({p.name: p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.is_file()} for folder in folders)
    assert one == two
    assert len(one) > 100


def test_the_command_line_compares_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, schema in (("old", BASE), ("new", {**BASE, "required": ["id", "level", "any"]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "M.json").write_text(render(schema))
    assert compat.main([str(tmp_path / "old"), str(tmp_path / "old")]) == 0
    assert compat.main([str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert "breaking: M.any: is required now" in capsys.readouterr().err
    assert compat.main([str(tmp_path / "old")]) == 2


def test_every_message_and_event_has_a_schema_with_an_identity() -> None:
    schemas = load(JSON_DIR)
    assert set(schemas) == set(catalog.json_schemas())
    assert {"Alert", "Experiment", "FactBatch", "Window", "Heartbeat", "cypria.alert.v1"} <= set(schemas)
    for name, schema in schemas.items():
        assert schema["$id"] == f"cypria/v1/{name}.json"
        assert schema["$schema"] == catalog.DRAFT
