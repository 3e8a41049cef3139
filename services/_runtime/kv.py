"""A mirror in memory of a KV bucket, kept by one task that renews its watch after every reconnect."""

import asyncio
import contextlib
from collections.abc import Callable

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from services._runtime.bus import Bus
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger

log = get_logger(__name__)

OnChange = Callable[[str, bytes | None, int], None]
"""Called with (key, value or None when deleted, revision); quick and not async."""

_IDLE_S = 15.0
_REMOVED = {"DEL", "PURGE"}


async def leaders(bus: Bus, bucket: str, key: str) -> tuple[bytes, int] | None:
    """A key's value as the bucket's leader has it now, and its revision; None where there is none. Raises NatsError.

    Not by KeyValue.get: buckets allow direct reads, and those may come from a replica that is behind.
    """
    try:
        stored = await bus.js.get_msg(f"KV_{bucket}", subject=f"$KV.{bucket}.{key}", direct=False)
    except NotFoundError:
        return None
    if (stored.headers or {}).get("KV-Operation") in _REMOVED or not stored.data:
        return None
    return bytes(stored.data), int(stored.seq or 0)


class KvMirror:
    """Keeps ``entries`` = {key: (value, revision)} equal to the bucket.

    A watch of nats-py dies quietly when the server restarts, so a reconnect always replaces it; revisions
    only ever go up, so a replayed watch changes nothing.
    """

    def __init__(self, bus: Bus, bucket: str, on_change: OnChange | None = None) -> None:
        self._bus = bus
        self._bucket = bucket
        self._on_change = on_change
        self._renew = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._revisions: dict[str, int] = {}
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.loaded = asyncio.Event()

    async def start(self, timeout_s: float = 15.0) -> None:
        """Begin to watch and wait for the first complete picture. Raises TimeoutError when there is none in time."""
        self._bus.on_reconnect(self._renew.set)
        self._task = asyncio.create_task(self._run(), name=f"kv-{self._bucket}")
        async with asyncio.timeout(timeout_s):
            await self.loaded.wait()

    async def stop(self) -> None:
        """End the watch."""
        await end(self._task)

    def missing(self) -> str | None:
        """For readiness checks."""
        return None if self.loaded.is_set() else f"KV bucket {self._bucket} has not been read yet"

    async def _run(self) -> None:
        while True:
            try:
                await self._watch()
            except (NatsError, OSError, TimeoutError) as exc:
                log.warning("kv_watch_failed", bucket=self._bucket, error=repr(exc))
                await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        self._renew.clear()
        kv = await self._bus.js.key_value(self._bucket)
        watcher = await kv.watchall()
        seen: set[str] = set()
        complete = False
        renew = asyncio.create_task(self._renew.wait())
        try:
            while not self._renew.is_set():
                update = asyncio.create_task(watcher.updates(timeout=_IDLE_S))
                await asyncio.wait({update, renew}, return_when=asyncio.FIRST_COMPLETED)
                if not update.done():
                    update.cancel()
                    return
                if isinstance(update.exception(), TimeoutError):
                    return  # a quiet watch and a dead one look alike: replace it
                entry = update.result()
                if entry is None:
                    if not complete:
                        complete = True
                        self._drop_absent(seen)
                        self.loaded.set()
                    continue
                seen.add(entry.key)
                removed = entry.operation in _REMOVED
                self._apply(entry.key, None if removed else bytes(entry.value or b""), int(entry.revision))
        finally:
            renew.cancel()
            with contextlib.suppress(NatsError, OSError):
                await watcher.stop()

    def _drop_absent(self, seen: set[str]) -> None:
        for key in [key for key in self.entries if key not in seen]:
            self._revisions.pop(key, None)
            del self.entries[key]
            if self._on_change:
                self._on_change(key, None, 0)

    def apply_own(self, key: str, value: bytes, revision: int) -> None:
        """Take in a value that this process has just written, without waiting for the watch."""
        self._apply(key, value, revision)

    def _apply(self, key: str, value: bytes | None, revision: int) -> None:
        if revision <= self._revisions.get(key, 0):
            return
        self._revisions[key] = revision
        if value is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = (value, revision)
        if self._on_change:
            try:
                self._on_change(key, value, revision)
            except Exception:
                log.exception("kv_change_handler_failed", bucket=self._bucket, key=key)
