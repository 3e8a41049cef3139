"""What may be in a model's directory: weights that are nothing but numbers, and no code, whatever it is called."""

import io
import json
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.inference.adapters.digest import IntegrityError, Snapshot, opened
from services.inference.adapters.safetensors_header import read_header

PICKLES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".dill", ".ckpt", ".joblib", ".npy", ".npz", ".ptl", ".pt2", ".mar"}
)
CODE = frozenset({".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pyz", ".whl", ".egg", ".so", ".dll", ".dylib"})
_HEAD = 1 << 20
_BINARY_PICKLE = re.compile(rb"\x80[\x01-\x05]")
_TEXT_PICKLE = frozenset(b"(c]}ilptdIFLSUVNGKMJX")
_LOADS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST"})
_CALLS = frozenset({"REDUCE", "BUILD", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX"})
_MAGICS = {
    b"\x93NUMPY": "a NumPy array, which may hold a pickle",
    b"\x7fELF": "a program",
    b"\xfe\xed\xfa": "a program", b"\xcf\xfa\xed\xfe": "a program",
    b"MZ\x90\x00": "a program",
}  # fmt: skip
_CODE_KEYS = frozenset({"auto_map", "custom_pipelines"})
_OTHER_MODELS = frozenset({"speculators_config", "text_model_id", "audio_model_id"})
"""What vLLM follows to another model, in another directory."""
_IMPLEMENTATIONS = frozenset({"attn_implementation", "_attn_implementation", "_experts_implementation"})
_NOT_CONFIGS = frozenset({"tokenizer.json", "vocab.json"})
_MAX_CONFIG = 32 << 20
_SAFE_LIBRARIES = ("transformers", "torch", "peft", "diffusers")

_CONVERT = "may run code when loaded; convert the weights to safetensors and remove it"
_UNLESS_NAMED = "remove it, or name the model in model_sources.remote_code if its code may run here"


def check_model(taken: Snapshot, *, code: bool = False) -> None:
    """Raises IntegrityError for what is no model or could run code; ``code``: the model may bring Python of its own.

    Reads the beginning of every file.
    """
    _check_files(taken, code=code)
    if "adapter_config.json" in taken.files:
        # Libraries would load the base model that it names, wherever that is, in the place of this one.
        raise IntegrityError(
            f"{taken.root / 'adapter_config.json'}: is an adapter's; give its directory as adapter, and path its model"
        )
    if not any(name.endswith(".safetensors") for name in taken.files):
        raise IntegrityError(f"{taken.root}: has no *.safetensors weights; convert the model to safetensors")
    if "config.json" in taken.files:
        _object(taken.root / "config.json")
    elif "params.json" not in taken.files:
        raise IntegrityError(f"{taken.root}: has no config.json; give the directory that holds it beside the weights")


def check_adapter(taken: Snapshot) -> None:
    """Raises IntegrityError for what is no LoRA adapter, or would have a library import what it names.

    The base model that it names is never looked at: which model it is put on is the configuration's word.
    """
    _check_files(taken, code=False)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if name not in taken.files:
            raise IntegrityError(f"{taken.root}: has no {name}; give the directory of a LoRA adapter in safetensors")
    file = taken.root / "adapter_config.json"
    config = _object(file)
    mapping = config.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if library is not None and not (isinstance(library, str) and library.split(".")[0] in _SAFE_LIBRARIES):
        raise IntegrityError(f"{file}: auto_mapping names code to import; remove it, the adapter needs none")
    if config.get("megatron_core") not in {None, "megatron.core"}:
        raise IntegrityError(f"{file}: megatron_core names code to import; remove it, the adapter needs none")


def _check_files(taken: Snapshot, *, code: bool) -> None:
    for name in sorted(taken.files):
        file, suffix = taken.root / name, os.path.splitext(name)[1].lower()  # noqa: PTH122 - of a relative name
        if suffix in PICKLES:
            raise IntegrityError(f"{file}: {_CONVERT}")
        if suffix in CODE and not (code and suffix == ".py"):
            raise IntegrityError(f"{file}: is code; {_UNLESS_NAMED if suffix == '.py' else 'remove it'}")
        if suffix == ".safetensors":
            read_header(file)
            continue
        _check_content(file, taken.files[name][2])
        base = name.rpartition("/")[2]
        if base.endswith(".safetensors.index.json"):
            _check_index(file, taken, name)
        elif suffix == ".json" and base not in _NOT_CONFIGS:
            _check_config(file, taken.files[name][2], code=code)


def _check_content(file: Path, size: int) -> None:
    with opened(file) as descriptor:
        head = os.pread(descriptor, _HEAD, 0)
        for magic, what in _MAGICS.items():
            if head.startswith(magic):
                raise IntegrityError(f"{file}: is {what}; remove it")
        if _BINARY_PICKLE.match(head) or _is_text_pickle(head, size):
            raise IntegrityError(f"{file}: is a pickle, whatever its name, and {_CONVERT}")
        if head.startswith(b"PK\x03\x04") and _holds_pickles(descriptor):
            raise IntegrityError(f"{file}: is an archive with pickles in it, or a damaged one, and {_CONVERT}")
        if head[257:262] == b"ustar":
            raise IntegrityError(f"{file}: is an archive; unpack what the model needs and remove it")


def _is_text_pickle(head: bytes, size: int) -> bool:
    """Whether the whole of it is a pickle of the oldest protocols that imports something and calls it."""
    if not head or head[0] not in _TEXT_PICKLE or size > len(head) or b"." not in head:
        return False
    loads = calls = False
    try:
        for opcode, _, _ in pickletools.genops(head):
            loads = loads or opcode.name in _LOADS
            calls = calls or opcode.name in _CALLS
        if loads and calls:
            pickletools.dis(head, io.StringIO())  # follows the stack as well, which a list of words does not survive
    except Exception:
        return False  # what the parser cannot follow to its end, no loader can either
    return loads and calls


def _holds_pickles(descriptor: int) -> bool:
    try:
        with io.FileIO(os.dup(descriptor)) as stream, zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
    except Exception:
        return True  # the module has many words for what it cannot read
    return any(os.path.splitext(name)[1].lower() in PICKLES | CODE for name in names)  # noqa: PTH122


def _check_index(file: Path, taken: Snapshot, name: str) -> None:
    weights = _object(file).get("weight_map")
    if not isinstance(weights, dict):
        raise IntegrityError(f"{file}: has no weight_map, an object of tensors and their files; restore it")
    folder = name.rpartition("/")[0]
    for shard in sorted({str(value) for value in weights.values()}):
        if "/" in shard or "\\" in shard or shard in {"", ".", ".."}:
            raise IntegrityError(f"{file}: names '{shard}', which is no plain file name; keep the weights beside it")
        if not shard.endswith(".safetensors"):
            raise IntegrityError(f"{file}: names '{shard}', which is no safetensors; convert the weights")
        if (f"{folder}/{shard}" if folder else shard) not in taken.files:
            raise IntegrityError(f"{file}: names '{shard}', which is not there; fetch the missing file")


def _check_config(file: Path, size: int, *, code: bool) -> None:
    if size > _MAX_CONFIG:
        raise IntegrityError(f"{file}: is over {_MAX_CONFIG} bytes, too large for a configuration; remove it")
    try:
        config = json.loads(_content(file))
    except (ValueError, RecursionError):
        if "config" not in file.name:
            return  # what no library can read tells it nothing
        raise IntegrityError(f"{file}: is not JSON; restore it") from None
    for found in _mappings(config):
        if not code:
            _check_code(file, found)
        for key in _OTHER_MODELS & found.keys():
            if found[key]:
                raise IntegrityError(f"{file}: {key} names another model, whose files nobody checks; remove it")
        if file.name == "modules.json" and _leads_out(found.get("path")):
            raise IntegrityError(f"{file}: path leads out of the model's directory; put the module there")


def _check_code(file: Path, found: dict[str, Any]) -> None:
    for key in _CODE_KEYS & found.keys():
        if found[key]:
            raise IntegrityError(f"{file}: {key} names code to run; {_UNLESS_NAMED}")
    for key in _IMPLEMENTATIONS & found.keys():
        # ORG/NAME is code of a hub's.
        if any("/" in str(name) for name in (found[key].values() if isinstance(found[key], dict) else [found[key]])):
            raise IntegrityError(f"{file}: {key} names code to run; {_UNLESS_NAMED}")


def _leads_out(path: Any) -> bool:
    return isinstance(path, str) and (path.startswith("/") or ".." in path.split("/"))


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_content(file))
    except (ValueError, RecursionError):
        raise IntegrityError(f"{file}: is not JSON; restore it") from None
    if not isinstance(found, dict):
        raise IntegrityError(f"{file}: is not a JSON object; restore it")
    return found


def _content(file: Path) -> bytes:
    with opened(file) as descriptor, io.FileIO(os.dup(descriptor)) as stream:
        content = stream.read(_MAX_CONFIG + 1)
    if len(content or b"") > _MAX_CONFIG:
        raise IntegrityError(f"{file}: is over {_MAX_CONFIG} bytes, too large for a configuration; remove it")
    return content or b""
