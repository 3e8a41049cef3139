"""One system, several models that must not be loaded: each says why, and the others serve."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.inference.adapters.digest import digest_dir
from tests.harness import environment, eventually
from tests.system import ROOT, System, running

STABLE = ROOT / "infra" / "models" / "stable"


def flip(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def add(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def remote_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))


def escape(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/etc/passwd")


def broken_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes((1 << 40).to_bytes(8, "little") + weights.read_bytes()[8:])


BAD: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "tampered": (flip, "digest is sha256:", "restore the files or the digest"),
    "pickled": (add("training_args.bin", pickle.dumps({})), "training_args.bin: may run code", "convert the weights to safetensors"),
    "hidden": (add("extra.dat", pickle.dumps({})), "extra.dat: is a pickle", "convert the weights to safetensors"),
    "coded": (add("modeling_evil.py", b"raise SystemExit"), "modeling_evil.py: is code", "model_sources.remote_code"),
    "mapped": (remote_code, "config.json: auto_map names code to run", "model_sources.remote_code"),
    "escaping": (escape, "tokenizer.json: is a symlink", "put a copy in its place"),
    "damaged": (broken_header, "model.safetensors: is no sound safetensors file", "fetch it anew"),
}  # fmt: skip


async def states(system: System) -> dict[str, dict[str, Any]]:
    return {model["name"]: model for model in (await system.api("GET", "models"))["models"]}


@pytest.mark.timeout(240)
async def test_each_bad_model_fails_with_its_reason_and_the_good_ones_serve(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    names = ["good", *BAD, "moved"]
    digest = digest_dir(STABLE)
    models: list[dict[str, Any]] = []
    for name in names:
        shutil.copytree(STABLE, allowed / name)
        if name in BAD:
            BAD[name][0](allowed / name)
        models.append({"name": name, "engine": "transformers", "path": str(allowed / name)})
        if name in {"good", "tampered"}:
            models[-1]["digest"] = digest
    # Its folder is swapped for a link out of the allowed ones after the configuration was checked.
    models[-1].update(path=str(allowed / "door" / "moved"), preload=False)
    (allowed / "door").symlink_to(allowed)
    sources = {"allow": [str(allowed)], "verify": "always"}
    limits = {"control_per_minute": 0, "control_burst": 1000}
    async with running(tmp_path, {"models": models, "model_sources": sources, "security": {"rate_limit": limits}}) as system:
        outside = tmp_path / "outside"
        shutil.copytree(STABLE, outside / "moved")
        (allowed / "door").unlink()
        (allowed / "door").symlink_to(outside)
        await system.api("POST", "models/moved/load")

        async def settled() -> dict[str, dict[str, Any]] | None:
            found = await states(system)
            over = all(found[name]["state"] == "failed" for name in [*BAD, "moved"])
            return found if over and found["good"]["state"] == "ready" else None

        found = await eventually(settled, 90, 0.2)
        for name, (_, what, remedy) in BAD.items():
            assert what in found[name]["reason"]
            assert remedy in found[name]["reason"]
            assert str(allowed / name) in found[name]["reason"]
        assert "below none of model_sources.allow: move the model there" in found["moved"]["reason"]
        assert (found["good"]["state"], found["good"]["digest"]) == ("ready", digest)
        body = {"model": "good", "messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 4}
        assert (await system.client.post("/v1/chat/completions", json=body)).status_code == 200
        assert (await system.client.get("/ready")).status_code == 200


def test_a_configuration_with_a_path_outside_the_allowed_sources_does_not_start(tmp_path: Path) -> None:
    config = {"models": [{"name": "m", "engine": "transformers", "path": str(STABLE)}], "model_sources": {"allow": [str(tmp_path)]}}
    (tmp_path / "cypria.yaml").write_text(yaml.safe_dump(config))
    ended = subprocess.run(
        [sys.executable, "-m", "services.cli", "up", "--config", str(tmp_path / "cypria.yaml"), "--data-dir", str(tmp_path / "d")],
        cwd=ROOT, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert f"models.0.path: {STABLE} is below none of model_sources.allow: move the model there" in ended.stderr + ended.stdout
