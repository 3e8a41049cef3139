"""What was written once decodes for ever, and nothing of it is lost."""

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from schemas import catalog
from schemas.generate import GOLDEN_DIR, changed_goldens, check, schema_name
from schemas.v1 import inference

GOLDENS = sorted(GOLDEN_DIR.glob("*.json"))
FRAMES = [path for path in GOLDENS if path.name.startswith("frame.")]
MESSAGES = [path for path in GOLDENS if path not in FRAMES]


def as_json(message: Any) -> Any:
    """A decoded message as JSON has it; msgspec leaves defaults out, so they are put back."""
    if isinstance(message, BaseModel):
        return message.model_dump(mode="json")
    if isinstance(message, msgspec.Struct):
        return {name: as_json(value) for name, value in msgspec.structs.asdict(message).items()}
    return message


def lost(written: Any, read: Any, path: str = "") -> list[str]:
    """Places where what was written is not what was read; what the reader added by defaults does not matter."""
    if isinstance(written, dict) and isinstance(read, dict):
        gone = [f"{path}.{key}" for key in written if key not in read]
        return gone + [p for key in written if key in read for p in lost(written[key], read[key], f"{path}.{key}")]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [p for index, one in enumerate(written) for p in lost(one, read[index], f"{path}[{index}]")]
    return [] if written == read else [path]


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.name)
def test_a_golden_example_decodes_and_keeps_every_field(path: Path) -> None:
    raw = path.read_bytes()
    read = as_json(catalog.decoder(schema_name(path))(raw))
    foreign = {".traceparent"} if "unknown-field" in path.name else set()
    assert set(lost(json.loads(raw), read)) == foreign


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.name)
def test_a_golden_frame_unpacks(path: Path) -> None:
    golden = json.loads(path.read_text())
    raw = base64.b64decode(golden["base64"])
    body = base64.b64decode(golden["body_base64"])
    assert raw[:5].hex() == golden["hex_of_fixed_part"]
    assert inference.kind_of(raw) == golden["kind"].encode()
    if golden["head_type"] is None:
        assert raw[1:] == body
        return
    head, rest = inference.unpack(raw, getattr(inference, golden["head_type"]))
    assert rest == body
    assert lost(golden["head"], as_json(head)) == []


def test_there_is_a_golden_frame_of_each_kind() -> None:
    kinds = {json.loads(path.read_text())["kind"] for path in FRAMES}
    assert kinds == {"S", "H", "C", "F"}


def test_schemas_and_goldens_are_in_order() -> None:
    assert check() == []


def test_a_changed_or_removed_golden_is_noticed(tmp_path: Path) -> None:
    for path in (*GOLDENS, GOLDEN_DIR / "SHA256SUMS"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert changed_goldens(tmp_path) == []
    (tmp_path / MESSAGES[0].name).write_text("{}\n")
    (tmp_path / MESSAGES[1].name).unlink()
    changed, gone = sorted(changed_goldens(tmp_path), key=lambda text: "gone" in text)
    assert MESSAGES[0].name in changed
    assert MESSAGES[1].name in gone


def test_no_golden_shows_a_prompt_a_user_or_an_address() -> None:
    for path in MESSAGES:
        text = path.read_text().lower()
        assert "@" not in text
        assert 'prompt"' not in text
