"""What a model's files say of its size: the headers of its safetensors and its config.json, read without loading it."""

import json
from pathlib import Path
from typing import Any

from services.inference.adapters.digest import IntegrityError
from services.inference.adapters.model_files import PICKLES
from services.inference.adapters.safetensors_header import read_header
from services.inference.domain.planning import Files

_LONGEST_JSON = 64 << 20
_MOST_FILES = 4096
_SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}


def read(folder: Path) -> Files:
    """The size of the model in ``folder``. Raises IntegrityError, and OSError for what cannot be read."""
    size = parameters = 0
    for file in _weight_files(folder):
        for tensor in read_header(file).values():
            size += tensor.end - tensor.begin
            parameters += tensor.numbers
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    config = {**config, **text} if isinstance(text := config.get("text_config"), dict) else config
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return Files(
        weights_bytes=size, parameters=parameters, dtype_bytes=_SIZES.get(dtype, 2), kv_per_token=_kv_per_token(config),
        context=_count(config, "max_position_embeddings"),
    )  # fmt: skip


def size_of(folder: Path) -> int:
    """Bytes of the weights in ``folder``. Raises as `read` does."""
    return sum(
        tensor.end - tensor.begin for file in _weight_files(folder) for tensor in read_header(file).values()
    )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _json(index).get("weight_map")
        if isinstance(named, dict):
            names = sorted({str(name) for name in named.values()})
            if any(Path(name).name != name for name in names):
                raise IntegrityError(f"{index}: names files outside of {folder}: restore the file")
            return [folder / name for name in names][:_MOST_FILES]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise IntegrityError(f"{folder}: {_none_found(folder)}")
    # Some models come twice, once for another library.
    return ([file for file in found if not file.name.startswith("consolidated")] or found)[:_MOST_FILES]


def _none_found(folder: Path) -> str:
    if not folder.is_dir():
        return "is no directory: give the directory of a model"
    pickled = next((file.name for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES), None)
    if pickled is not None:
        return f"has no *.safetensors weights, and {pickled} may run code when loaded: convert it to safetensors"
    return "has no *.safetensors weights: give the directory of a model"


def _parsed(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise IntegrityError(f"{file}: is not valid JSON: restore the file") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{file}: is no JSON object: restore the file")
    return value


def _json(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _LONGEST_JSON:
        raise IntegrityError(f"{file}: is larger than {_LONGEST_JSON >> 20} MiB: restore the file")
    return _parsed(file.read_bytes(), file)


def _kv_per_token(config: dict[str, Any]) -> int:
    layers = _count(config, "num_hidden_layers", "n_layer")
    latent = _count(config, "kv_lora_rank")
    if latent:  # one compressed vector for all heads (DeepSeek's attention)
        return layers * (latent + _count(config, "qk_rope_head_dim"))
    heads = _count(config, "num_attention_heads", "n_head")
    size = _count(config, "head_dim") or (_count(config, "hidden_size", "n_embd") // heads if heads else 0)
    return 2 * layers * (_count(config, "num_key_value_heads") or heads) * size


def _count(config: dict[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 1 << 40:
            return value
    return 0
