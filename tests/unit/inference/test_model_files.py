"""What may be in a model's directory and what may not."""

import contextlib
import json
import os
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.digest import IntegrityError, digest_dir
from services.inference.adapters.integrity import Sources, joint_digest, verify
from tests.unit.inference.conftest import check, safetensors


def test_accepted(model: Path) -> None:
    found = check(model)
    assert check(model, found, (str(model.parent) + "/",)) == found
    tokenizer = {"tokenizer.model": b"\n\x0b\n\x05<unk>", "merges.txt": b"#version: 0.2\nc a\n", "vocab.txt": b"car\ndog\nRest.\n"}
    for name, content in {**tokenizer, "chat_template.jinja": b"{{ messages }}", "README.md": b"# cos\nsystem\n"}.items():
        (model / name).write_bytes(content)
    long = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    long += b" " * (640 - len(long))  # whose length reads like the beginning of a pickle: 0x80 0x02
    (model / "more.safetensors").write_bytes(struct.pack("<Q", 640) + long + b"\0" * 8)
    check(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "sub/optimizer.PKL", "a.ckpt", "a.npz"])
def test_pickles_by_name(model: Path, name: str) -> None:
    (model / name).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=f"{Path(name).name}: may run code when loaded; convert"):
        check(model)


def zipped(*names: str) -> bytes:
    import io
    import zipfile

    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def pickled(protocol: int) -> bytes:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("true",)

    return pickle.dumps(Evil(), protocol)


@pytest.mark.parametrize(
    "content",
    [*(pickled(protocol) for protocol in range(6)), zipped("archive/data.pkl"), zipped("x/code.py"), zipped("a")[:-9], b"\x93NUMPY\1\0"],
    ids=[*(f"protocol{n}" for n in range(6)), "torch", "code", "damaged", "numpy"],
)
@pytest.mark.parametrize("name", ["model.dat", "tokenizer.json", "sub/notes.txt"])
def test_pickles_by_content(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=f"{Path(name).name}: is a.*(convert|remove it)"):
        check(model)


def test_an_archive_of_anything_else_is_only_hashed(model: Path) -> None:
    (model / "samples.zip").write_bytes(zipped("a.txt"))
    check(model)


@pytest.mark.parametrize("name", ["modeling_x.py", "custom_generate/generate.py", "lib.so", "x.pyc", "X.PY"])
def test_code_by_name(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"pass")
    with pytest.raises(IntegrityError, match=f"{Path(name).name}: is code.*remove it"):
        check(model)
    if name.lower().endswith(".py"):
        check(model, remote_code=frozenset({"m"}))
        with pytest.raises(IntegrityError, match=r"model_sources\.remote_code"):
            check(model, remote_code=frozenset({"another"}))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json", "sub/anything.json"])
def test_code_by_configuration(model: Path, name: str) -> None:
    for config in ({"auto_map": {"AutoModel": "x.Y"}}, {"text_config": [{"auto_map": {"AutoConfig": "o/r--x.Y"}}]}):
        (model / name).write_text(json.dumps(config))
        with pytest.raises(IntegrityError, match=f"{Path(name).name}: auto_map names code to run.*remote_code"):
            check(model)
        check(model, remote_code=frozenset({"m"}))
    (model / name).write_text('{"auto_map": null}')
    check(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"speculators_config": {"verifier": {"name_or_path": "/elsewhere"}}}, "speculators_config names another model"),
        ({"thinker": {"text_model_id": "/elsewhere"}}, "text_model_id names another model"),
        ({"audio_model_id": "org/other"}, "audio_model_id names another model"),
        ({"text_config": {"attn_implementation": "org/kernel"}}, "attn_implementation names code"),
        ({"_attn_implementation": {"": "org/kernel@main:f"}}, "_attn_implementation names code"),
    ],
)
def test_a_configuration_that_leads_elsewhere(model: Path, config: dict[str, Any], words: str) -> None:
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(IntegrityError, match=rf"config\.json: {words}.*remove it"):
        check(model)
    (model / "config.json").write_text('{"attn_implementation": "sdpa", "text_model_id": null, "_name_or_path": "/there"}')
    check(model)


def test_modules_of_a_model_are_in_it(model: Path) -> None:
    dense = {"idx": 1, "type": "sentence_transformers.models.Dense"}
    (model / "modules.json").write_text(json.dumps([{**dense, "path": "2_Dense"}, {**dense, "path": ""}]))
    check(model)
    for path in ("../2_Dense", "/2_Dense", "2_Dense/../../x"):
        (model / "modules.json").write_text(json.dumps([{**dense, "path": path}]))
        with pytest.raises(IntegrityError, match=r"modules\.json: path leads out of the model's directory"):
            check(model)


def test_an_adapter_is_no_model(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(IntegrityError, match=r"adapter_config\.json: is an adapter's; give its directory as adapter"):
        check(model)


@pytest.mark.parametrize("config", ["", "{", "[]", "\xff", "3"])
def test_a_configuration_that_is_none(model: Path, config: str) -> None:
    (model / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(IntegrityError, match=r"config\.json: is not .*; restore it"):
        check(model)
    (model / "config.json").unlink()
    with pytest.raises(IntegrityError, match=r"has no config\.json"):
        check(model)


def test_random_beginnings_are_refused_or_taken_and_nothing_else(model: Path) -> None:
    chance = random.Random(7)
    starts = [b"PK\x03\x04", b"\x80\x04\x95", b"(", b"cos\nsystem\n", b"{", struct.pack("<Q", 40), b""]
    for n in range(400):
        name = chance.choice(["a.dat", "model.safetensors", "config.json", "x.safetensors.index.json", "b.txt"])
        (model / name).write_bytes(chance.choice(starts) + chance.randbytes(n % 60))
        with contextlib.suppress(IntegrityError):
            check(model)
        (model / name).unlink()
        (model / "config.json").write_text("{}")


def test_no_safetensors(model: Path) -> None:
    (model / "sub" / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"has no .*safetensors"):
        check(model)


def tensor(begin: int, end: int, shape: object = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 7, struct.pack("<Q", 1 << 62), struct.pack("<Q", (32 << 20) + 1) + b"{}", struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}" + b"x", struct.pack("<Q", 4) + b"{\xff\xff}",
        struct.pack("<Q", 90_000) + b"[" * 90_000,
        safetensors({"a": tensor(0, 9)}), safetensors({"a": tensor(0, 5), "b": tensor(4, 8)}), safetensors({"a": tensor(1, 8)}),
        safetensors({"a": tensor(0, 4), "b": tensor(5, 8)}), safetensors({"a": tensor(0, 8, [3])}), safetensors({"a": tensor(0, 8, [-8])}),
        safetensors({"a": tensor(0, 8, [True, 8])}), safetensors({"a": tensor(0, 8, dtype="X9")}), safetensors({"a": tensor(8, 0)}),
        safetensors({"a": tensor(0, 8, "12345678")}), safetensors({"a": tensor(0, 8, [1 << 4000])}), safetensors({"a": 1}),
        safetensors({"a": {**tensor(0, 8), "dtype": ["U8"]}}), safetensors()[:-1],
        struct.pack("<Q", 114) + b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'.ljust(114) + b"\0" * 8,
    ],
)  # fmt: skip
def test_unsound_safetensors(model: Path, content: bytes) -> None:
    (model / "sub" / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: is no sound safetensors file: .*; fetch it anew"):
        check(model)


def test_a_header_of_something_else_is_not_read_to_its_end(model: Path) -> None:
    # All that Python's parser made of these would be in memory at once: hundreds of megabytes.
    for header in (b'{"w":[' + b"[]," * 2_000_000 + b"[]]}", b'{"w":{"shape":[' + b"{}," * 2_000_000 + b"{}]}}"):
        (model / "sub" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        tracemalloc.start()
        try:
            with pytest.raises(IntegrityError, match="its header is not what the format wants: Expected "):
                check(model)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "..", "a\\b.safetensors", "model.bin", "gone.safetensors", "", 3])
def test_an_index_that_leads_elsewhere(model: Path, shard: object) -> None:
    index = model / "sub" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    check(model)
    index.write_text(json.dumps({"weight_map": {"v": "model.safetensors", "w": shard}}))
    with pytest.raises(IntegrityError, match=r"index\.json: names "):
        check(model)
    index.write_text("{}")
    with pytest.raises(IntegrityError, match=r"index\.json: has no weight_map"):
        check(model)


def test_an_adapter(model: Path, adapter: Path) -> None:
    def joined(**fields: Any) -> str:
        return verify(Model(name="m", engine="vllm", path=model, adapter=adapter, **fields), Sources()).digest

    both = joined()
    assert both == joint_digest(digest_dir(model), digest_dir(adapter)) != check(model)
    assert joined(digest=digest_dir(model), adapter_digest=digest_dir(adapter)) == both
    with pytest.raises(IntegrityError, match=r"adapter: digest is"):
        joined(adapter_digest=digest_dir(model))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for bad, words in (
        ({"auto_mapping": {"parent_library": "os", "base_model_class": "x"}}, "auto_mapping names code"),
        ({"auto_mapping": {"parent_library": ["os"]}}, "auto_mapping names code"), ({"auto_mapping": "os"}, "auto_mapping"),
        ({"megatron_core": "evil"}, "megatron_core names code"), ({"auto_map": {"a": "b"}}, "auto_map names code"),
    ):  # fmt: skip
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **bad}))
        with pytest.raises(IntegrityError, match=rf"adapter_config\.json: {words}"):
            joined()
    fine = {"auto_mapping": {"parent_library": "transformers.models.llama.modeling_llama"}, "megatron_core": "megatron.core"}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **fine}))
    joined()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(IntegrityError, match=r"adapter_model\.bin: may run code"):
        joined()
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(IntegrityError, match=r"has no adapter_model\.safetensors"):
        joined()
