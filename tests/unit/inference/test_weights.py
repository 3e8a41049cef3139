import json
import struct
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters import weights
from services.inference.adapters.digest import IntegrityError
from services.inference.adapters.planner import request_of
from services.inference.domain.planning import Files

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"


def tensors(file: Path, **shapes: tuple[str, list[int], int]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


def test_a_real_models_figures() -> None:
    found = weights.read(STABLE)
    assert found == Files(
        weights_bytes=found.parameters * 2, parameters=found.parameters, dtype_bytes=2, kv_per_token=2 * 3 * 64, context=512
    )
    assert 1_200_000 < found.parameters < 1_250_000


def test_every_type_of_weights_counts_by_its_bytes(tmp_path: Path) -> None:
    tensors(tmp_path / "model.safetensors", a=("F8_E4M3", [10, 10], 100), b=("F32", [5], 20))
    tensors(tmp_path / "consolidated.safetensors", a=("F32", [100], 400))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "torch_dtype": "float32"}}))
    found = weights.read(tmp_path)
    assert (found.weights_bytes, found.parameters, found.dtype_bytes) == (120, 105, 4), "not the copy for another library"
    assert found.kv_per_token == 2 * 2 * 4 * 16
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 128}))
    assert weights.read(tmp_path).kv_per_token == 3 * 576
    (tmp_path / "config.json").write_text('{"num_hidden_layers": "many", "num_attention_heads": -1, "head_dim": true, "max_position_embeddings": 1e99}')
    assert weights.read(tmp_path).kv_per_token == 0


def test_an_index_names_the_files(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        tensors(tmp_path / f"{name}.safetensors", a=("F32", [5], 20))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}))
    assert weights.read(tmp_path).weights_bytes == 40
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(IntegrityError, match="outside of"):
        weights.read(tmp_path)


def test_nonsense_is_refused_by_the_files_name(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for raw in (b"", b"abc", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 5) + b"{oops"):
        file.write_bytes(raw)
        with pytest.raises(IntegrityError, match=str(file)):
            weights.read(tmp_path)
    tensors(file, a=("F32", [5], 20))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(IntegrityError, match=r"config\.json: is no JSON object"):
        weights.read(tmp_path)


def test_what_a_model_asks_for(tmp_path: Path) -> None:
    tensors(tmp_path / "adapter_model.safetensors", a=("F32", [5], 20))
    model = Model(name="m", engine="vllm", path=STABLE, adapter=tmp_path, batch_size=64, max_concurrency=8, engine_args={"dtype": "auto"})
    found = request_of(model)
    assert (found.adapter_bytes, found.batch, found.args, found.problem) == (20, 8, {"dtype": "auto"}, "")
    gone = request_of(Model(name="m", engine="transformers", path=tmp_path / "nowhere"))
    assert "nowhere: is no directory" in gone.problem
    (tmp_path / "pickled").mkdir()
    empty = request_of(Model(name="m", engine="transformers", path=tmp_path / "pickled"))
    assert "pickled: has no *.safetensors weights: give" in empty.problem
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    pickled = request_of(Model(name="m", engine="transformers", path=tmp_path / "pickled"))
    assert "pytorch_model.bin may run code when loaded: convert it" in pickled.problem
    hub = request_of(Model(name="m", engine="vllm", path=Path("hf://org/name@" + "0" * 40)))
    assert hub.elsewhere
