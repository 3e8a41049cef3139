"""The data dir of `cypria up`: one holder at a time, the admin key, and what must be true of it before a start."""

import fcntl
import hashlib
import os
import secrets
import sys
from pathlib import Path
from typing import IO

from services._runtime import nats_server
from services._runtime.server import EXIT_CONFIG
from services._runtime.settings_model import Settings

ADMIN_KEY_FILE = "admin.key"
_FOLDERS = ("run", "spool", "nats", "nats/store", "clickhouse")


class StartError(Exception):
    """The system cannot start; the message says why and what to do, ``status`` is that of the process."""

    def __init__(self, message: str, status: int = EXIT_CONFIG) -> None:
        super().__init__(message)
        self.status = status


def hold(data_dir: Path) -> IO[str]:
    """Hold the data dir for as long as the file is open. Raises StartError when it cannot be used."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data_dir / "up.lock").open("a+")
    except OSError as exc:
        raise StartError(_unusable(data_dir, exc)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise StartError(
            f"{data_dir} is in use by another `cypria up`: stop it, or give another --data-dir"
        ) from None
    try:
        _prepare(data_dir)
    except BaseException:
        file.close()
        raise
    return file


def _prepare(data_dir: Path) -> None:
    """What services could only say late, and again and again."""
    for name in _FOLDERS:
        folder = data_dir / name
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise StartError(f"{folder} is not a directory: remove it, or give another --data-dir")
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise StartError(
                f"{folder} is not writable for user {os.getuid()}: give it to that user, or give another --data-dir"
            )
    try:
        run = data_dir / "run"
        run.mkdir(exist_ok=True)
        for stale in run.glob("*.json"):
            stale.unlink(missing_ok=True)
        probe = data_dir / ".probe"
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as exc:
        raise StartError(_unusable(data_dir, exc)) from None


def _unusable(data_dir: Path, exc: OSError) -> str:
    return f"cannot use {data_dir} as the data dir ({exc.strerror}): make room or give another --data-dir"


def admin_key(settings: Settings) -> str | None:
    """SHA-256 of the admin key kept in the data dir, made at first start; None when keys are configured.

    Raises StartError when the file holds none, OSError when it cannot be read or written.
    """
    if settings.security.api_keys:
        return None
    path = settings.data_dir / ADMIN_KEY_FILE
    if not path.exists():
        nats_server.write_private(path, "cyp_" + secrets.token_urlsafe(32) + "\n")
    key = path.read_text(errors="replace").strip()
    if not key:
        raise StartError(f"{path} is empty: remove it, and a new admin key is made")
    sys.stderr.write(f"cypria: no key is configured; the admin key is in {path}\n")
    return hashlib.sha256(key.encode()).hexdigest()
