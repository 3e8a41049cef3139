"""Fact batches on disk until the bus has them: one directory for each router process, one file for each batch.

A directory is locked by its process; the lock dies with it, so a restarted router can tell what was left behind.
Files reach the page cache, which a kill -9 of the router survives (a power cut may not).
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

LOCK = "lock"
MAX_BYTES = 256 << 20


class SpoolFull(OSError):  # noqa: N818 - says what it is
    """The bound on the spool's size is reached."""


class Spool:
    """Batches of one router process. Raises OSError where the disk does."""

    def __init__(self, folder: Path, lock: BinaryIO, max_bytes: int) -> None:
        self.folder = folder
        self._lock = lock
        self._max = max_bytes
        self.bytes = sum(path.stat().st_size for path in folder.glob("*.json"))

    @classmethod
    def create(cls, root: Path, router_epoch: str, max_bytes: int = MAX_BYTES) -> "Spool":
        """The spool of a new process."""
        folder = root / router_epoch
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        if lock is None:
            raise FileExistsError(f"{folder} is in use by another router process")
        return cls(folder, lock, max_bytes)

    @classmethod
    def abandoned(cls, root: Path) -> Iterator["Spool"]:
        """Spools of processes that have died, now locked by this one."""
        for folder in sorted(path for path in root.glob("*") if path.is_dir()):
            lock = _locked(folder)
            if lock is not None:
                yield cls(folder, lock, MAX_BYTES)

    @property
    def router_epoch(self) -> str:
        """Whose batches these are."""
        return self.folder.name

    def write(self, partition: int, n: int, payload: bytes) -> None:
        """Keep a batch. Raises SpoolFull over the bound."""
        if self.bytes + len(payload) > self._max:
            raise SpoolFull(f"the spool holds {self.bytes} of {self._max} bytes")
        path = self._path(partition, n)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(payload)
        fresh.replace(path)
        self.bytes += len(payload)

    def exchange(
        self, payloads: Iterable[tuple[int, int, bytes]], done: Iterable[tuple[int, int]]
    ) -> dict[tuple[int, int], OSError]:
        """Remove the batches that the bus has, keep others (partition, n, payload); by batch why it is not kept."""
        failed: dict[tuple[int, int], OSError] = {}
        for partition, n in done:
            try:
                self.remove(partition, n)
            except OSError as exc:  # sent once more after a restart, under its old number: harmless
                failed[partition, n] = exc
        for partition, n, payload in payloads:
            try:
                self.write(partition, n, payload)
            except OSError as exc:
                failed[partition, n] = exc
        return failed

    def read(self, partition: int, n: int) -> bytes:
        """A batch that was kept."""
        return self._path(partition, n).read_bytes()

    def remove(self, partition: int, n: int) -> None:
        """The bus has it."""
        path = self._path(partition, n)
        with contextlib.suppress(FileNotFoundError):
            self.bytes -= path.stat().st_size
            path.unlink()

    def batches(self) -> list[tuple[int, int]]:
        """(partition, n) of what is kept, in the order in which it must be sent."""
        found = []
        for path in self.folder.glob("*.json"):
            partition, n = path.stem.split(".")
            found.append((int(partition), int(n)))
        return sorted(found)

    def close(self) -> None:
        """Unlock, and remove the directory when nothing is left in it."""
        if not any(self.folder.glob("*.json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _path(self, partition: int, n: int) -> Path:
        return self.folder / f"{partition}.{n:012d}.json"


def _locked(folder: Path) -> BinaryIO | None:
    try:
        handle = (folder / LOCK).open("wb")
    except FileNotFoundError:
        return None  # its last owner has just removed it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    # The owner may have removed the directory between our open and our lock.
    if not (folder / LOCK).exists() or os.fstat(handle.fileno()).st_nlink == 0:
        handle.close()
        return None
    return handle
