"""A log file that several processes write and that is replaced before it grows too large."""

import contextlib
import fcntl
import logging
import os
import sys
from pathlib import Path
from typing import IO

_MODE = 0o600


class SharedLogFile(logging.Handler):
    """Appends each record as a whole, whoever else writes; FILE becomes FILE.1, that one FILE.2, up to ``backups``.

    Nothing is lost where two processes come to a full file at once: only one of them moves it, under a lock beside it,
    and what another writes meanwhile goes to the end of the moved one. A file that was moved or removed by others
    (logrotate) is made anew. While it cannot be written, the log on stderr says so once and goes on alone.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._failed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = self._open()

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "replace")
            self._append(line)
        except OSError as exc:
            if not self._failed:
                reason = exc.strerror or type(exc).__name__
                sys.stderr.write(f"cypria: {self._path} cannot be written ({reason}): the log goes on here alone\n")
            self._failed = True
        except Exception:
            self.handleError(record)
        else:
            self._failed = False

    def close(self) -> None:
        """Close the file."""
        with self.lock or contextlib.nullcontext():
            if self._file is not None:
                self._file.close()
                self._file = None
        super().close()

    def _append(self, line: bytes) -> None:
        size = self._size()
        if size is None:
            self._reopen()
        elif size and size + len(line) > self._max_bytes:
            self._rotate(len(line))
        if self._file is not None:
            self._file.write(line)

    def _size(self) -> int | None:
        """Of the file in hand; None when the path leads to another one by now, or to none."""
        if self._file is None:
            return None
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return None
        held = os.fstat(self._file.fileno())
        return there.st_size if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) else None

    def _open(self) -> IO[bytes]:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        return os.fdopen(descriptor, "ab", buffering=0)

    def _reopen(self) -> None:
        before, self._file = self._file, None
        if before is not None:
            before.close()
        self._file = self._open()

    def _rotate(self, coming: int) -> None:
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            size = self._size()
            if size is not None and size + coming > self._max_bytes:
                for number in range(self._backups - 1, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        self._numbered(number).replace(self._numbered(number + 1))
                self._path.replace(self._numbered(1))
            self._reopen()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
