"""Digest of a model directory: one value that changes when any file in it does.

`python -m infra.models.digest [ROOT]` checks ROOT/digests.json against the directories beside it.
"""

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

MODELS = ("stable", "canary", "broken")
_BLOCK = 1 << 20


def digest_dir(path: str | os.PathLike[str]) -> str:
    """The digest of every file below `path`, as `sha256:<64 hex digits>`.

    It is SHA-256 over one line for each file, sorted by relative path as UTF-8 bytes:
    `<posix path> NUL <size in bytes> NUL <sha256 of the content, hex> LF`. Files are read in blocks of 1 MiB.

    Raises:
        ValueError: `path` is or holds a symlink or anything else that is neither file nor directory, or holds
            no file at all.
        OSError: something cannot be read, or `path` is no directory.
    """
    root = Path(path)
    total = hashlib.sha256()
    files = sorted(_files(root), key=lambda file: file.relative_to(root).as_posix().encode())
    if not files:
        raise ValueError(f"{root}: holds no file; a model directory needs config.json and weights")
    for file in files:
        size, content = _digest_file(file)
        total.update(file.relative_to(root).as_posix().encode() + f"\0{size}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _files(directory: Path) -> list[Path]:
    # A link could be turned to other content after the digest was taken, so nothing that follows one counts.
    if directory.is_symlink():
        raise ValueError(f"{directory}: is a symlink; give the directory it leads to")
    found: list[Path] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                found += _files(Path(entry.path))
            elif stat.S_ISREG(mode):
                found.append(Path(entry.path))
            else:
                raise ValueError(f"{entry.path}: is a symlink or special file; put a copy in its place")
    return found


def _digest_file(file: Path) -> tuple[int, str]:
    content, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            content.update(block)
            size += len(block)
    return size, content.hexdigest()


def write_digests(root: Path) -> dict[str, str]:
    """Write `root/digests.json` ({model name: digest}) for the models below `root`, and return it."""
    digests = {name: digest_dir(root / name) for name in MODELS}
    (root / "digests.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    return digests


def main(argv: list[str]) -> int:
    """Compare `digests.json` with the directories; 0 when all agree, 1 otherwise."""
    root = Path(argv[0]) if argv else Path(__file__).parent
    expected: dict[str, str] = json.loads((root / "digests.json").read_text(encoding="utf-8"))
    failed = 0
    for name, want in expected.items():
        have = digest_dir(root / name)
        failed += have != want
        print(f"{name}: {have}" + ("" if have == want else f" differs from digests.json: {want}"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
