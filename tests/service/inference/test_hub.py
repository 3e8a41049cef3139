"""Models of a hub: fetched over real HTTP by a process of their own, checked, kept, refused."""

import asyncio
import json
import os
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services._runtime.settings_engines import Model
from services.inference.adapters.digest import digest_dir
from services.inference.adapters.integrity import HubUnreachableError, IntegrityError, Sources, verified
from tests.fakes.hub_server import COMMIT, FakeHub, Repository
from tests.harness import contents, eventually
from tests.service.inference.conftest import StackFactory

HEADER = json.dumps({"w": {"dtype": "U8", "shape": [25_000_000], "data_offsets": [0, 25_000_000]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + os.urandom(1_000_000) * 25
FILES = {
    "config.json": b"{}", "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}",
    "pytorch_model.bin": b"pickle", "modeling_x.py": b"import os", "README.md": b"#", "original/params.json": b"{}",
    "sub/generation_config.json": b"{}",
}  # fmt: skip
KEPT = ["chat_template.jinja", "config.json", "model.safetensors", "sub/generation_config.json", "tokenizer.json"]


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHub]:
    async with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(variable, raising=False)
        server.repositories["org/model"] = Repository(dict(FILES))
        yield server


def entry(revision: str = COMMIT, **fields: Any) -> Model:
    return Model(name="m", engine="transformers", path=f"hf://org/model@{revision}", **fields)


def files(path: Path | None) -> list[str]:
    assert path is not None
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


async def test_fetched_once_checked_and_kept(hub: FakeHub, tmp_path: Path) -> None:
    sources, seen = Sources(("hf://org/",), data_dir=tmp_path), []
    found = await verified(entry(), sources, progress=lambda doing, share: seen.append((doing, share)))
    assert files(found.model.path) == KEPT == hub.fetched()
    assert found.model.path == tmp_path / "models" / f"org--model@{COMMIT}"
    assert found.digest == digest_dir(found.model.path)
    assert seen[0][0] == "downloading"
    assert seen[-1] == ("verifying", 1.0)
    hub.requests.clear()
    assert (await verified(entry(digest=found.digest), sources)).digest == found.digest
    assert not hub.requests, "what is there is not asked for"
    await hub.stop()
    (found.model.path / "config.json").write_text("{ }")
    with pytest.raises(IntegrityError, match=r"digest is .*configured is"):
        await verified(entry(digest=found.digest), sources)


async def test_a_worker_serves_a_model_of_a_hub(hub: FakeHub, stack: StackFactory) -> None:
    stable = Path(__file__).parents[3] / "infra" / "models" / "stable"
    hub.repositories["org/model"].files = {file.name: file.read_bytes() for file in stable.iterdir()}
    models = [{"name": "m", "engine": "transformers", "path": f"hf://org/model@{COMMIT}", "digest": digest_dir(stable)}]
    async with stack(models=models, sections={"model_sources": {"allow": ["hf://org/"]}}, wait=False) as s:
        await eventually(lambda: s.models.missing() is None, 90)
        reply = await (await s.router.chat(max_tokens=3)).end()
        assert (reply.done.outcome, reply.done.digest) == ("length", digest_dir(stable))


async def test_its_code_comes_only_where_it_may_run(hub: FakeHub, tmp_path: Path) -> None:
    sources = Sources(("hf://org/model",), remote_code=frozenset("m"), data_dir=tmp_path)
    assert files((await verified(entry(), sources)).model.path) == sorted([*KEPT, "modeling_x.py"])


async def test_a_connection_that_breaks_off_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut = 15_000_000
    found = await verified(entry(), Sources(("hf://org/",), data_dir=tmp_path))
    assert found.model.path is not None
    assert (found.model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert [int(given.removeprefix("bytes=").split("-")[0]) > 0 for given in hub.ranges] == [True]


async def test_what_was_fetched_before_a_stop_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    sources = Sources(("hf://org/",), data_dir=tmp_path)
    hub.stall = 15_000_000
    task = asyncio.create_task(verified(entry(), sources))
    await eventually(lambda: sum(len(held) for path, held in contents(tmp_path) if path.suffix == ".incomplete") >= 10_000_000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not list((tmp_path / "models").glob("org--*")), "half a model is none"
    assert hub.fetched() == KEPT
    hub.stall = None
    hub.requests.clear()
    found = await verified(entry(), sources)
    assert hub.fetched() == ["model.safetensors"]
    assert files(found.model.path) == KEPT
    assert not list(tmp_path.rglob("*.incomplete"))


async def test_a_branch_only_with_a_digest_and_only_what_has_it(hub: FakeHub, tmp_path: Path) -> None:
    sources = Sources(("hf://org/",), data_dir=tmp_path)
    digest = (await verified(entry(), sources)).digest
    with pytest.raises(IntegrityError, match=r"hf://org/model@main: its digest is sha256:.* now, configured is sha256:0"):
        await verified(entry("main", digest="sha256:" + "0" * 64), sources)
    assert (await verified(entry("main", digest=digest), sources)).digest == digest
    hub.repositories["org/model"].files["config.json"] = b"{ }"
    hub.requests.clear()
    assert (await verified(entry("main", digest=digest), sources)).digest == digest
    assert not hub.requests


async def test_two_workers_fetch_it_once(hub: FakeHub, tmp_path: Path) -> None:
    sources = Sources(("hf://org/",), data_dir=tmp_path)
    both = await asyncio.gather(verified(entry(), sources), verified(entry(), sources))
    assert both[0].digest == both[1].digest
    assert hub.fetched() == KEPT


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "org/other"}, "does not exist there or is private: check the name, or set HF_TOKEN"),
        ({"token": "hf_secret"}, "does not exist there or is private: check the name, or set HF_TOKEN"),
        ({"gated": True}, "is gated: accept its terms there and set HF_TOKEN"),
        ({"branches": {"main": "f" * 40}}, "has no such revision: give the hash of a commit"),
        ({"files": {"README.md": b"#"}}, "has no files that a model is loaded from"),
        ({"files": {"../x.json": b"{}"}}, "is no name of a model's file"),
        ({"files": {"a.safetensors": b"", "config.json": b"{}"}}, "is no sound safetensors file"),
        ({"files": {"config.json": b'{"auto_map": {"a": "b"}}', "m.safetensors": WEIGHTS}}, "auto_map names code to run"),
    ],
)  # fmt: skip
async def test_refusals_that_no_other_try_mends(hub: FakeHub, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = hub.repositories.pop("org/model")
    for name, value in change.items():
        setattr(found, name, value)
    hub.repositories[change.get("name", "org/model")] = found
    with pytest.raises(IntegrityError, match=words) as refused:
        await verified(entry(), Sources(("hf://org/",), data_dir=tmp_path))
    assert "hf_secret" not in str(refused.value)


async def test_a_token_of_the_environment_is_used(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/model"].token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (await verified(entry(), Sources(("hf://org/",), data_dir=tmp_path))).digest


async def test_a_hub_that_cannot_be_reached_says_the_remedy(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = Sources(("hf://org/",), data_dir=tmp_path)
    await hub.stop()
    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(HubUnreachableError, match=r"could not be fetched .*HF_ENDPOINT.*copy the model to a directory"):
            await verified(entry(), sources)


async def test_only_what_is_allowed_by_name(hub: FakeHub, tmp_path: Path) -> None:
    for allow in ((), (str(tmp_path),), ("hf://or/",), ("hf://org/mode",), (f"hf://org/model@{'f' * 40}",)):
        with pytest.raises(IntegrityError, match=r"is not among model_sources\.allow: name it there, such as hf://org/"):
            await verified(entry(), Sources(allow, data_dir=tmp_path))
    assert not hub.requests
    for allow in (("hf://org",), ("hf://org/model/",), (f"hf://org/model@{COMMIT}",)):
        await verified(entry(), Sources(allow, data_dir=tmp_path))
    assert threading.active_count() < 50
