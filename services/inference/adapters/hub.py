"""Models of a hub (`path: hf://ORG/NAME@REVISION`), fetched once into the data dir and checked there like any other."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from services._runtime.settings_engines import HubSource
from services.inference.adapters.digest import IntegrityError, StoppedError, digest_dir
from services.inference.adapters.engine import OnProgress
from services.inference.adapters.hub_download import METADATA

_LOOK_S = 0.2


class HubUnreachableError(OSError):
    """The hub did not give the files; it may do so later. The message says what to see to."""


def fetched(
    source: HubSource, folder: Path, *, digest: str | None, code: bool, progress: OnProgress,
    stop: threading.Event | None,
) -> Path:  # fmt: skip
    """The directory below ``folder`` with the files of ``source``, fetched unless they are there already.

    Of a branch, which can move, only what has ``digest`` is kept. Raises IntegrityError when no other try will do,
    HubUnreachableError, and StoppedError once ``stop`` is set.
    """
    name = f"{source.repo}@{source.revision}".replace("/", "--")
    if not source.is_commit:
        name += f"-{(digest or '').removeprefix('sha256:')[:16]}"
    whole, partial = folder / name, folder / f".{name}.partial"
    if whole.is_dir():
        return whole
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(folder / f".{name}.lock", stop):
        if whole.is_dir():
            return whole  # another worker of this machine was first
        _download(source, partial, code=code, progress=progress, stop=stop)
        if not source.is_commit and digest is not None and (found := digest_dir(partial)) != digest:
            raise IntegrityError(
                f"{source}: its digest is {found} now, configured is {digest}: give the commit that you mean, or the "
                "new digest"
            )
        partial.rename(whole)
    return whole


def _download(
    source: HubSource, partial: Path, *, code: bool, progress: OnProgress, stop: threading.Event | None
) -> None:
    progress("downloading", -1.0)
    request = {
        "repo": source.repo, "revision": source.revision, "folder": str(partial), "code": code, "parent": os.getpid(),
    }  # fmt: skip
    process = subprocess.Popen(  # noqa: S603 - this very interpreter, with arguments of our own
        [sys.executable, "-m", f"{__package__}.hub_download"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    said: dict[str, object] = {}

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                said.update(json.loads(line))

    listener = threading.Thread(target=listen, daemon=True)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.close()
        listener.start()
        while process.poll() is None:
            _pause(stop)
            total = said.get("total")
            if isinstance(total, int) and total > 0:
                progress("downloading", min(1.0, _size(partial) / total))
        listener.join(5)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None and not listener.is_alive():
            process.stdout.close()
    if "done" in said:
        return
    error = f"{source}: {said.get('error') or f'the download ended with status {process.returncode}'}"
    raise HubUnreachableError(error) if said.get("again", True) else IntegrityError(error)


def _size(folder: Path) -> int:
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if METADATA not in Path(parent).parts or name.endswith(".incomplete"):
                with contextlib.suppress(OSError):
                    found += (Path(parent) / name).stat().st_size
    return found


def _pause(stop: threading.Event | None) -> None:
    if stop is None:
        time.sleep(_LOOK_S)
    elif stop.wait(_LOOK_S):
        raise StoppedError


@contextlib.contextmanager
def _locked(file: Path, stop: threading.Event | None) -> Iterator[None]:
    """Alone on this machine; waits for whoever has the lock."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _pause(stop)
        yield
    finally:
        os.close(descriptor)
