"""The one value that changes when any file of a model does, and how to tell later that none has."""

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.inference.adapters.digest_cache import DigestCache

_BLOCK = 4 << 20
_MAX_FILES = 100_000

Stat = tuple[int, int, int, int, int]
"""Device, inode, size, and the nanoseconds of its last change of content and of its last change at all."""

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes there are."""


class IntegrityError(ValueError):
    """The model's files are not what they must be; the message names the file and the remedy."""


class StoppedError(Exception):
    """Whoever wanted to know does not any more."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The regular files below a directory at one moment, by relative path. It says nothing of what is in them.

    Not ``exact``: a file system where the same file may show another inode and times of its own at the next look, so
    that only its size and the time of its last change of content count.
    """

    root: Path
    files: Mapping[str, Stat] = field(default_factory=dict)
    exact: bool = True

    def same(self, name: str, now: Stat | None) -> bool:
        """Whether the file is as it was."""
        was = self.files.get(name)
        return was == now or (not self.exact and was is not None and now is not None and was[2:4] == now[2:4])

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(found[2] for found in self.files.values())


def digest_dir(path: str | os.PathLike[str]) -> str:
    """The digest of every file below ``path``, as `sha256:<64 hex digits>`.

    It is SHA-256 over one line for each file, sorted by relative path as UTF-8 bytes:
    `<posix path> NUL <size in bytes> NUL <sha256 of the content, hex> LF`. Raises IntegrityError for a link, a
    special file, a name that cannot be shown or no file at all, and OSError for what cannot be read.
    """
    return digest_of(snapshot(Path(path)))


def snapshot(root: Path) -> Snapshot:
    """What is below ``root`` now. Raises IntegrityError for all but directories and regular files, and OSError."""
    # A link could lead elsewhere after the digest was taken, so nothing that follows one counts.
    if root.is_symlink():
        raise IntegrityError(f"{root}: is a symlink; give the directory it leads to")
    found: dict[str, Stat] = {}
    folders = [(root, "")]
    while folders:
        folder, prefix = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                _check_name(folder, entry.name)
                now = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(now.st_mode):
                    folders.append((folder / entry.name, f"{prefix}{entry.name}/"))
                elif stat.S_ISREG(now.st_mode):
                    found[prefix + entry.name] = _key(now)
                else:
                    raise IntegrityError(f"{entry.path}: is a symlink or special file; put a copy in its place")
        if len(found) + len(folders) > _MAX_FILES:
            raise IntegrityError(f"{root}: holds more than {_MAX_FILES} files; give the directory of one model")
    if not found:
        raise IntegrityError(f"{root}: holds no file; a model directory needs config.json and weights")
    return Snapshot(root, found)


def _check_name(folder: Path, name: str) -> None:
    try:
        name.encode()
        shown = name.isprintable()
    except UnicodeEncodeError:
        shown = False
    if not shown:
        raise IntegrityError(f"{folder}: the file {name!a} has a name that cannot be shown; rename or remove it")


def _key(found: os.stat_result) -> Stat:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def digest_of(
    taken: Snapshot, cache: DigestCache | None = None, *, progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> str:  # fmt: skip
    """The digest of the files of ``taken``, as `digest_dir` describes it.

    With ``cache``, the content of a file that it knows is not read again. Raises IntegrityError when a file changes
    meanwhile, StoppedError when ``stop`` is set (looked at between blocks), and OSError.
    """
    total, size, done = hashlib.sha256(), taken.size, 0

    def told(read: int) -> None:
        if progress is not None:
            progress(read, size)

    for name in sorted(taken.files, key=str.encode):
        key = taken.files[name]
        content = cache.get(key) if cache is not None else None
        if content is None:
            content = _read(taken, name, done, told, stop, cache)
        done += key[2]
        told(done)
        total.update(name.encode() + f"\0{key[2]}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _read(
    taken: Snapshot, name: str, before: int, told: Callable[[int], None], stop: threading.Event | None,
    cache: DigestCache | None,
) -> str:  # fmt: skip
    file, key = taken.root / name, taken.files[name]
    content, done, began_ns = hashlib.sha256(), 0, time.time_ns()
    with opened(file) as descriptor:
        # Bytes that a memory map has changed show in the times only once they are written back.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
        same = taken.same(name, _key(os.fstat(descriptor)))
        buffer = memoryview(bytearray(_BLOCK))
        while same and (read := os.readv(descriptor, [buffer])):
            if stop is not None and stop.is_set():
                raise StoppedError
            content.update(buffer[:read])
            done += read
            told(before + done)
        if not same or done != key[2] or not taken.same(name, _key(os.fstat(descriptor))):
            raise IntegrityError(f"{file}: changed while it was read; load the model again when its files are at rest")
    found = content.hexdigest()
    if cache is not None:
        cache.put(key, found, began_ns)
    return found


@contextlib.contextmanager
def opened(file: Path) -> Iterator[int]:
    """A descriptor of a regular file, to read; whatever has taken its place is neither followed nor waited for."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IntegrityError(f"{file}: is no regular file any more; put a copy in its place")
        yield descriptor
    finally:
        os.close(descriptor)


def unchanged(taken: Snapshot) -> None:
    """Raises IntegrityError, naming the first file, unless the directory is as it was when ``taken`` was."""
    now = snapshot(taken.root)
    for name in sorted(taken.files.keys() | now.files.keys()):
        if not taken.same(name, now.files.get(name)):
            raise IntegrityError(
                f"{taken.root / name}: changed between the check of the model and the end of loading it; load the "
                "model again when its files are at rest"
            )
