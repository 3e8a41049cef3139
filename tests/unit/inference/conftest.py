"""A model and an adapter on the disk that are as they should be."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.integrity import Sources, verify


def safetensors(header: object = None, data: bytes = b"\0" * 8) -> bytes:
    raw = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} if header is None else header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def check(path: Path, expected: str | None = None, allow: tuple[str, ...] = (), **sources: Any) -> str:
    config = Model(name="m", engine="transformers", path=path, digest=expected)
    return verify(config, Sources(allow, **sources)).digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "sub").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "sub" / "model.safetensors").write_bytes(safetensors())
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "/etc/../elsewhere", "auto_mapping": None}
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(safetensors())
    return path
