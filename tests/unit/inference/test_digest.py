"""What changes the digest, what is read again, and where models may be."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.models import digest as published
from services._runtime.settings_engines import Model
from services.inference.adapters import digest, digest_cache
from services.inference.adapters.digest import IntegrityError, Snapshot, StoppedError, digest_dir, digest_of, snapshot
from services.inference.adapters.digest_cache import DigestCache, shows_changes
from services.inference.adapters.integrity import Sources, unchanged, verified, verify
from tests.harness import eventually
from tests.unit.inference.conftest import check, safetensors

STABLE = Path(__file__).parents[3] / "infra" / "models" / "stable"
OLD_NS = 1_000_000_000 * 1_000_000


def test_the_same_digest_as_the_published_one() -> None:
    assert check(STABLE) == digest_dir(STABLE) == published.digest_dir(STABLE)
    assert digest_dir(STABLE) == json.loads((STABLE.parent / "digests.json").read_text())["stable"], "pinned in configurations"


_NAMES = st.text(st.sampled_from("ab.-é字"), min_size=1, max_size=4).filter(lambda name: name.strip("."))
_TREES = st.dictionaries(st.tuples(_NAMES, _NAMES), st.binary(max_size=12), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=_TREES, data=st.data())
def test_any_change_of_a_byte_a_name_or_a_file_changes_the_digest(
    tree: dict[tuple[str, str], bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for (folder, name), content in tree.items():
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(content)
    before = digest_dir(root)
    assert digest_dir(root) == before
    file = root.joinpath(*data.draw(st.sampled_from(sorted(tree))))
    content = file.read_bytes()
    changes = ["add", "rename", "remove", "longer", *(["byte"] if content else [])]
    change = data.draw(st.sampled_from(changes))
    if change == "add":
        (file.parent / "new").write_bytes(b"")
    elif change == "rename":
        file.rename(file.parent / "new")
    elif change == "remove":
        (root / "kept").write_bytes(b"")  # so that something is left
        before = digest_dir(root)
        file.unlink()
    elif change == "longer":
        file.write_bytes(content + b"\0")
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert digest_dir(root) != before


def test_tampered(model: Path) -> None:
    found = check(model)
    (model / "sub" / "model.safetensors").write_bytes(safetensors(data=b"\0" * 7 + b"\1"))
    with pytest.raises(IntegrityError, match=r"digest is sha256:.*configured is sha256:.*restore the files or the digest"):
        check(model, found)


def test_links(model: Path, tmp_path: Path) -> None:
    for target in ("/etc/passwd", model / "config.json", tmp_path):
        (model / "link").symlink_to(target)
        with pytest.raises(IntegrityError, match="link: is a symlink or special file; put a copy"):
            check(model)
        (model / "link").unlink()
    (tmp_path / "alias").symlink_to(model)
    with pytest.raises(IntegrityError, match="alias: is a symlink; give the directory it leads to"):
        check(tmp_path / "alias", allow=(str(tmp_path),))


def test_special_files_and_names(model: Path) -> None:
    os.mkfifo(model / "pipe")
    with pytest.raises(IntegrityError, match="pipe: is a symlink or special file"):
        check(model)
    (model / "pipe").unlink()
    for name in (b"a\nb", b"\x1b[2J", b"\xff\xfe", "a\u202eb".encode()):
        file = os.fsencode(model) + b"/" + name
        open(file, "wb").close()
        with pytest.raises(IntegrityError, match="name that cannot be shown; rename or remove it") as refused:
            check(model)
        assert str(refused.value).isprintable()
        os.unlink(file)
    check(model)


def test_outside_the_allowed_sources(model: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    for allow in ([str(allowed)], ["hf://meta/"], [str(model) + "-other"], [str(model).upper()]):
        with pytest.raises(IntegrityError, match=r"model_sources\.allow"):
            check(model, allow=tuple(allow))
    with pytest.raises(IntegrityError, match=r"model_sources\.allow"):
        check(allowed / ".." / "model", allow=(str(allowed),))
    (allowed / "inside").symlink_to(model.parent)
    with pytest.raises(IntegrityError, match=r"model_sources\.allow"):
        check(allowed / "inside" / "model", allow=(str(allowed),))


def test_an_allowed_source_may_be_a_link_and_what_is_loaded_is_what_was_checked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(model.parent)
    config = Model(name="m", engine="transformers", path=tmp_path / "store" / "model")
    assert verify(config, Sources((str(tmp_path / "store"),))).model.path == model.resolve()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no directory"):
        check(tmp_path / "none")


def test_writable_by_all_is_only_warned_of(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "config.json").chmod(0o666)
    check(model)
    assert "model_writable_by_all" in capsys.readouterr().out


def test_what_changes_during_the_load_is_noticed(model: Path, adapter: Path) -> None:
    def change_size() -> None:
        (model / "config.json").write_text("{ }")

    def change_back() -> None:
        file = model / "sub" / "model.safetensors"
        content, times = file.read_bytes(), file.stat()
        file.write_bytes(content[:-1] + b"\1")
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def swap() -> None:
        (adapter / "copy").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
        (adapter / "copy").rename(adapter / "adapter_model.safetensors")

    changes: list[Callable[[], Any]] = [change_size, change_back, swap, (model / "new").touch, (model / "new").unlink]
    for change in changes:
        checked = verify(Model(name="m", engine="vllm", path=model, adapter=adapter), Sources())
        unchanged(checked)
        change()
        with pytest.raises(IntegrityError, match="changed between the check of the model and the end of loading it"):
            unchanged(checked)


def test_a_file_system_that_numbers_files_anew_is_taken_by_size_and_time(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("services.inference.adapters.integrity.shows_changes", lambda _: False)
    checked = verify(Model(name="m", engine="vllm", path=model), Sources(data_dir=tmp_path / "data"))
    file = model / "config.json"
    times = file.stat()
    (model / "copy").write_bytes(file.read_bytes())
    (model / "copy").rename(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    unchanged(checked)
    assert not (tmp_path / "data").exists(), "nothing is remembered of it"
    file.write_text("{ }")
    with pytest.raises(IntegrityError, match=r"config\.json: changed between"):
        unchanged(checked)


class Opened:
    """Counts the files that are read for their content."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        read = digest._read

        def counted(taken: Snapshot, name: str, *args: Any) -> str:
            self.names.append(name.rpartition("/")[2])
            return read(taken, name, *args)

        monkeypatch.setattr(digest, "_read", counted)

    def taken(self) -> list[str]:
        names, self.names = sorted(self.names), []
        return names


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """No file is too young to be remembered here, and every file system shows changes."""
    monkeypatch.setattr(digest_cache, "_SETTLED_NS", 0)
    monkeypatch.setattr("services.inference.adapters.integrity.shows_changes", lambda _: True)
    return Opened(monkeypatch)


def test_what_has_not_changed_is_not_read_again(model: Path, tmp_path: Path, opened: Opened) -> None:
    data = tmp_path / "data"
    found = check(model, data_dir=data)
    assert opened.taken() == ["config.json", "model.safetensors"]
    assert (data / "cache" / "digests.json").stat().st_mode & 0o777 == 0o600
    assert check(model, found, data_dir=data) == found
    assert opened.taken() == []
    assert check(model, data_dir=data, always=True) == found
    assert opened.taken() == ["config.json", "model.safetensors"]
    forced = verify(Model(name="m", engine="transformers", path=model), Sources(data_dir=data), force=True)
    assert (forced.digest, opened.taken()) == (found, ["config.json", "model.safetensors"])
    (model / "config.json").write_text("{ }")
    assert check(model, data_dir=data) != found
    assert opened.taken() == ["config.json"]


def test_tampering_between_two_starts_shows_whatever_is_done_to_the_times(model: Path, tmp_path: Path, opened: Opened) -> None:
    data, file = tmp_path / "data", model / "sub" / "model.safetensors"
    good = check(model, data_dir=data)
    before = file.stat()
    evil = file.read_bytes()[:-1] + b"\1"
    file.write_bytes(evil)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and time: ctime tells
    with pytest.raises(IntegrityError, match="digest is"):
        check(model, good, data_dir=data)
    other = tmp_path / "other"
    other.write_bytes(evil)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(file)
    with pytest.raises(IntegrityError, match="digest is"):
        check(model, good, data_dir=data)


def test_a_file_that_changed_a_moment_ago_is_not_remembered(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.adapters.integrity.shows_changes", lambda _: True)
    counted, data = Opened(monkeypatch), tmp_path / "data"
    check(model, data_dir=data)
    assert not (data / "cache" / "digests.json").exists()
    cache, now = DigestCache(tmp_path / "c.json"), OLD_NS
    for key, kept in (((1, 2, 3, now - 10**9, now - 10**9), False), ((1, 2, 3, now - 10**10, now + 1), False), ((1, 2, 3, now - 10**10, now - 10**10), True)):
        cache.put(key, "a" * 64, now)
        cache.save()
        assert (DigestCache(tmp_path / "c.json").get(key) is not None) is kept
    assert counted.taken()


def test_a_cache_that_somebody_else_may_have_written_is_ignored(model: Path, tmp_path: Path, opened: Opened) -> None:
    data = tmp_path / "data"
    found = check(model, data_dir=data)
    file = data / "cache" / "digests.json"
    good = file.read_text()

    def link() -> None:
        file.rename(data / "real")
        file.symlink_to(data / "real")

    poisons: list[Callable[[], Any]] = [
        lambda: file.chmod(0o644), lambda: file.chmod(0o620), link, lambda: os.link(file, data / "second"),
        *(lambda text=text: file.write_text(text) for text in ("", "{", "[]", '{"version":1}', '{"version":2,"files":{}}', "[" * 9999,
          '{"version":1,"files":[]}', json.dumps({"version": 1, "files": dict.fromkeys(json.loads(good)["files"], "not a digest")}))),
    ]  # fmt: skip
    for poison in poisons:
        file.unlink(missing_ok=True)
        file.write_text(good)
        file.chmod(0o600)
        opened.taken()
        assert (check(model, found, data_dir=data), opened.taken()) == (found, [])
        poison()
        assert check(model, found, data_dir=data) == found
        assert opened.taken(), "it was believed"
        (data / "second").unlink(missing_ok=True)
    file.write_text(json.dumps({"version": 1, "files": dict.fromkeys(json.loads(good)["files"], "0" * 64)}))
    file.chmod(0o600)
    assert check(model, found, data_dir=data) == found, "what is written wrong is no reason to refuse a model"
    assert json.loads(file.read_text()) == json.loads(good)


def test_where_times_show_every_change() -> None:
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /mnt/with\\040blank rw - fuse.sshfs x rw\n"
        "3 1 0:6 / /mem rw - tmpfs tmpfs rw\n4 1 0:7 / /mem/disk rw shared:1 - xfs /dev/sdb rw\nnonsense\n"
    )
    for path, shown in (("/models", True), ("/mnt/with blank/m", False), ("/mem/x", False), ("/mem/disk/x", True), ("/memory", True)):
        assert shows_changes(Path(path), mounts) is shown
    assert not shows_changes(Path("/x"), "")


def test_progress_and_stop(model: Path) -> None:
    (model / "large.txt").write_bytes(b" " * (9 << 20))
    taken, seen, stop = snapshot(model), [], threading.Event()
    digest_of(taken, progress=lambda done, size: seen.append((done, size)))
    assert seen == sorted(seen)
    assert seen[-1] == (taken.size, taken.size)
    assert len(seen) > 4

    def halfway(done: int, size: int) -> None:
        if done > size / 2:
            stop.set()

    with pytest.raises(StoppedError):
        digest_of(taken, progress=halfway, stop=stop)


async def test_cancelling_ends_the_reading(model: Path) -> None:
    with (model / "large.txt").open("wb") as stream:
        stream.truncate(4 << 30)
    seen: list[float] = []
    config = Model(name="m", engine="transformers", path=model)
    task = asyncio.create_task(verified(config, Sources(), progress=lambda _, share: seen.append(share)))
    await eventually(lambda: seen, every_s=0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen[-1] < 1


def test_what_changes_while_it_is_read_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = snapshot(model)
    (model / "config.json").write_text("{ }")
    with pytest.raises(IntegrityError, match=r"config\.json: changed while it was read"):
        digest_of(taken)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(IntegrityError, match=r"config\.json: is no regular file any more"):
        digest_of(taken)
