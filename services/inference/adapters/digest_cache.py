"""Digests of files that have not changed since they were read, so that 100 GB are not read at every start."""

import contextlib
import json
import os
import re
import stat
import tempfile
from pathlib import Path

from services._runtime.telemetry import get_logger

log = get_logger(__name__)

_VERSION = 1
_MAX_ENTRIES = 50_000
_MAX_BYTES = 16 << 20
_SETTLED_NS = 3_000_000_000
"""A file that changed later than this before it was read could change again without its times showing it."""

_HEX = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"\d{1,20}(:-?\d{1,20}){4}")
_WITHOUT_TIMES = frozenset({"tmpfs", "ramfs", "9p", "virtiofs"})
"""File systems whose times do not show every change; those in user space say what they like."""


class DigestCache:
    """SHA-256 of contents by device, inode, size and the times of the last change (content, and anything at all).

    Nobody but root can set the last of these back. Not kept are files changed so lately that another change could
    hide within the clock's grain. A file that is damaged, not ours alone to write or of another version is not used.
    """

    def __init__(self, file: Path, *, forget: bool = False) -> None:
        """``forget``: look nothing up, only remember."""
        self._file = file
        self._known = {} if forget else _load(file)
        self._new: dict[str, str] = {}

    def get(self, key: tuple[int, int, int, int, int]) -> str | None:
        """The digest of the content of the file with this identity, if it is known."""
        return self._known.get(_text(key))

    def forget(self) -> None:
        """Look nothing up any more."""
        self._known = {}

    def put(self, key: tuple[int, int, int, int, int], digest: str, read_at_ns: int) -> None:
        """Remember what was read; ``read_at_ns``: when reading began, in Unix nanoseconds."""
        if read_at_ns - max(key[3], key[4]) >= _SETTLED_NS:
            self._new[_text(key)] = digest

    def save(self) -> None:
        """Write what is new beside what others have written meanwhile; a failure costs time later and nothing else."""
        if not self._new:
            return
        try:
            merged = {**_load(self._file), **self._new}
            kept = dict(list(merged.items())[-_MAX_ENTRIES:])
            _write(self._file, json.dumps({"version": _VERSION, "files": kept}))
        except OSError as exc:
            log.warning("digest_cache_not_written", file=str(self._file), error=str(exc))
            return
        self._new = {}


def _text(key: tuple[int, int, int, int, int]) -> str:
    return ":".join(map(str, key))


def _load(file: Path) -> dict[str, str]:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        foreign = found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_nlink != 1
        if not stat.S_ISREG(found.st_mode) or foreign or found.st_size > _MAX_BYTES:
            log.warning("digest_cache_ignored", file=str(file), reason="not a file of mode 0600 of this user")
            return {}
        try:
            read = json.loads(stream.read(_MAX_BYTES))
            entries = read["files"] if read["version"] == _VERSION else {}
            return {key: digest for key, digest in entries.items() if _KEY.fullmatch(key) and _HEX.fullmatch(digest)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            log.warning("digest_cache_ignored", file=str(file), reason=f"damaged ({exc!r})")
            return {}


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def shows_changes(path: Path, mounts: str | None = None) -> bool:
    """Whether the times of files below ``path`` show every change. ``mounts``: text of /proc/self/mountinfo."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
    real, best, kind = path.resolve(), -1, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split()
        if len(parts) < 5 or not rest:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), parts[4]))
        if real.is_relative_to(point) and len(point.parts) >= best:  # of several on one point the last one counts
            best, kind = len(point.parts), rest.split()[0]
    return bool(kind) and kind not in _WITHOUT_TIMES and not kind.startswith("fuse")
