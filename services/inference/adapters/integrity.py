"""Whether a model's files are what they must be: where they are, what they are, and that nobody has changed them.

`verified` before loading, `unchanged` after it.
"""

import asyncio
import hashlib
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services._runtime.settings_engines import Model, hub_source, is_allowed, not_allowed
from services._runtime.telemetry import get_logger
from services.inference.adapters import digest
from services.inference.adapters.digest import IntegrityError, Snapshot, StoppedError, digest_of, snapshot
from services.inference.adapters.digest_cache import DigestCache, shows_changes
from services.inference.adapters.engine import OnProgress, ignore_progress
from services.inference.adapters.hub import HubUnreachableError, fetched
from services.inference.adapters.model_files import check_adapter, check_model

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """`model_sources`, and the data dir, where digests of large files are remembered; without it nothing is.

    ``always``: read every byte at every load.
    """

    allow: tuple[str, ...] = ()
    remote_code: frozenset[str] = frozenset()
    always: bool = False
    data_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """A model whose files may be loaded.

    ``model`` is what an engine is to be given: its ``path`` and ``adapter`` are the checked directories themselves,
    with links on the way to them resolved. ``digest`` travels on every fact; with an adapter it is `joint_digest`;
    empty for an engine without files. ``snapshots`` are for `unchanged`.
    """

    model: Model
    digest: str = ""
    snapshots: tuple[Snapshot, ...] = ()


async def verified(
    model: Model, sources: Sources, *, force: bool = False, progress: OnProgress = ignore_progress
) -> Verified:
    """All checks on the files of ``model``, in a thread; to be awaited before its engine is made.

    With ``force`` every byte is read, as `model_sources.verify: always` does; else a file that has not changed since
    it was last read is not read again. ``progress`` is called in this event loop. Cancelling ends the thread before the
    cancellation goes on. A model of a hub is fetched into the data dir first. Raises IntegrityError, for which no other
    try will do, and OSError, for which one may (HubUnreachableError among them).
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def tell(doing: str, fraction: float) -> None:
        if not stop.is_set():
            loop.call_soon_threadsafe(progress, doing, fraction)

    work = asyncio.ensure_future(asyncio.to_thread(verify, model, sources, force=force, progress=tell, stop=stop))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work])
        work.exception()  # marks it as seen: nobody wants to know any more
        raise


def verify(
    model: Model, sources: Sources, *, force: bool = False, progress: OnProgress = ignore_progress,
    stop: threading.Event | None = None,
) -> Verified:  # fmt: skip
    """As `verified`, here and now. Raises StoppedError as well, once ``stop`` is set."""
    if model.path is None:
        return Verified(model)
    try:
        return _verify(model, model.path, sources, force=force, progress=progress, stop=stop)
    except PermissionError as exc:
        raise IntegrityError(f"{exc.filename}: this process's user may not read it; give it the right to") from None


def _verify(
    model: Model, path: Path, sources: Sources, *, force: bool, progress: OnProgress, stop: threading.Event | None
) -> Verified:
    cache = None
    if sources.data_dir is not None:
        cache = DigestCache(sources.data_dir / "cache" / "digests.json", forget=force or sources.always)
    told = -1

    def done(read: int, size: int) -> None:
        nonlocal told
        percent = 100 * read // size if size else 100
        if percent != told:
            told = percent
            progress("verifying", percent / 100)

    code = model.name in sources.remote_code

    def directory(path: Path, expected: str | None, *, code: bool) -> Snapshot:
        local = _fetched(path, expected, sources, progress, stop, code=code)
        return _directory(local, sources.allow if local is path else ())

    taken = directory(path, model.digest, code=code)
    check_model(taken, code=code)
    found = _digest(taken, model.digest, cache, done, stop)
    local = model.model_copy(update={"path": taken.root})
    snapshots = [taken]
    if model.adapter is not None:
        adapter = directory(model.adapter, model.adapter_digest, code=False)
        check_adapter(adapter)
        found = joint_digest(found, _digest(adapter, model.adapter_digest, cache, done, stop))
        local = local.model_copy(update={"adapter": adapter.root})
        snapshots.append(adapter)
    return Verified(local, found, tuple(snapshots))


def unchanged(checked: Verified) -> None:
    """Raises IntegrityError when a file is another than when it was checked; to be called in a thread once the engine
    has loaded, since what was loaded is what was checked only if nothing changed in between.
    """
    for taken in checked.snapshots:
        digest.unchanged(taken)


def joint_digest(model: str, adapter: str) -> str:
    """The digest of a model with an adapter: SHA-256 over `<digest of the model> LF <digest of the adapter> LF`."""
    both = f"{model}\n{adapter}\n"
    return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"


def _directory(path: Path, allow: Sequence[str]) -> Snapshot:
    if path.is_symlink():
        raise IntegrityError(f"{path}: is a symlink; give the directory it leads to")
    if not path.is_dir():
        raise IntegrityError(f"{path}: is no directory; give the directory of a model")
    if not is_allowed(path, allow):
        raise IntegrityError(not_allowed(path))
    taken = snapshot(path.resolve())
    taken = replace(taken, exact=shows_changes(taken.root))
    _warn_of_writers(taken)
    return taken


def _fetched(
    path: Path, expected: str | None, sources: Sources, progress: OnProgress, stop: threading.Event | None, *,
    code: bool,
) -> Path:  # fmt: skip
    """Where the files are that ``path`` names: a hub's are fetched first."""
    source = hub_source(path)
    if source is None:
        return path
    if not is_allowed(path, sources.allow):
        raise IntegrityError(not_allowed(path))
    if sources.data_dir is None:
        raise IntegrityError(f"{source}: there is no data dir to fetch it into; set data_dir")
    folder = sources.data_dir.resolve() / "models"
    return fetched(source, folder, digest=expected, code=code, progress=progress, stop=stop)


def _warn_of_writers(taken: Snapshot) -> None:
    folders = {parent for name in taken.files for parent in (taken.root / name).parents}
    inside = [folder for folder in folders if folder.is_relative_to(taken.root)]
    for path in sorted([taken.root.parent, *inside, *(taken.root / name for name in taken.files)]):
        mode = path.lstat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            log.warning("model_writable_by_all", path=str(path), remedy=f"chmod o-w {path}")
            return


def _digest(
    taken: Snapshot, expected: str | None, cache: DigestCache | None, done: digest.Progress,
    stop: threading.Event | None,
) -> str:  # fmt: skip
    kept = cache if taken.exact else None
    try:
        found = digest_of(taken, kept, progress=done, stop=stop)
        if kept is not None and found != (expected or found):
            kept.forget()  # a model is refused for what its files are, never for what was once written about them
            found = digest_of(taken, kept, progress=done, stop=stop)
    finally:
        if kept is not None:
            kept.save()  # half of a large model is worth keeping as well
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{taken.root}: digest is {found}, configured is {expected}: restore the files or the digest"
        )
    return found


__all__ = [
    "HubUnreachableError", "IntegrityError", "Sources", "StoppedError", "Verified", "joint_digest", "unchanged",
    "verified", "verify",
]
