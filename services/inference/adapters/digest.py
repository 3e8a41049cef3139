"""Which files a model may be made of, and the one value that changes when any of them does."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

_BLOCK = 1 << 20
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"})


class IntegrityError(ValueError):
    """The model's files are not what they must be; the message names the file and the remedy."""


def digest_dir(path: str | os.PathLike[str]) -> str:
    """The digest of every file below ``path``, as `sha256:<64 hex digits>`.

    It is SHA-256 over one line for each file, sorted by relative path as UTF-8 bytes:
    `<posix path> NUL <size in bytes> NUL <sha256 of the content, hex> LF`. Raises IntegrityError for a link, a
    special file or no file at all, and OSError for what cannot be read.
    """
    root = Path(path)
    total = hashlib.sha256()
    files = sorted(_files(root), key=lambda file: file.relative_to(root).as_posix().encode())
    if not files:
        raise IntegrityError(f"{root}: holds no file; a model directory needs config.json and weights")
    for file in files:
        size, content = _digest_file(file)
        total.update(file.relative_to(root).as_posix().encode() + f"\0{size}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _files(directory: Path) -> list[Path]:
    # A link could lead elsewhere after the digest was taken, so nothing that follows one counts.
    if directory.is_symlink():
        raise IntegrityError(f"{directory}: is a symlink; give the directory it leads to")
    found: list[Path] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                found += _files(Path(entry.path))
            elif stat.S_ISREG(mode):
                found.append(Path(entry.path))
            else:
                raise IntegrityError(f"{entry.path}: is a symlink or special file; put a copy in its place")
    return found


def _digest_file(file: Path) -> tuple[int, str]:
    content, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            content.update(block)
            size += len(block)
    return size, content.hexdigest()


def check_source(path: Path, allow: Sequence[str]) -> None:
    """Raises IntegrityError when ``path``, its links resolved, is below none of ``allow`` (empty: all are)."""
    real = path.resolve()
    for prefix in allow:
        if "://" not in prefix and real.is_relative_to(Path(prefix).resolve()):
            return
    if allow:
        raise IntegrityError(f"{path}: not below any of model_sources.allow: move it there or extend the list")


def check_weights(path: Path) -> None:
    """Raises IntegrityError for a file that runs code when loaded, or when there are no safetensors."""
    files = _files(path)
    for file in files:
        if file.suffix.lower() in _PICKLES:
            raise IntegrityError(f"{file}: may run code when loaded; convert the weights to safetensors and remove it")
    if not any(file.suffix == ".safetensors" for file in files):
        raise IntegrityError(f"{path}: has no *.safetensors weights; convert the model to safetensors")


def verify(path: Path, expected: str | None, allow: Sequence[str]) -> str:
    """All checks on a model's directory; its digest. Raises IntegrityError. Reads every byte: use a thread."""
    if not path.is_dir():
        raise IntegrityError(f"{path}: is no directory; give the directory of a model")
    check_source(path, allow)
    check_weights(path)
    found = digest_dir(path)
    if expected is not None and found != expected:
        raise IntegrityError(f"{path}: digest is {found}, configured is {expected}: restore the files or the digest")
    return found
