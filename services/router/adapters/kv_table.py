"""A KV bucket of messages: a mirror in memory, compare-and-set with retries, and reads past every copy."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from nats.js.api import Header
from nats.js.errors import APIError
from pydantic import ValidationError

from schemas import subjects
from schemas.v1.common import Message
from services._runtime.bus import TRANSIENT, WRONG_LAST_SEQUENCE, Bus, compare_and_set
from services._runtime.kv import KvMirror, leaders
from services._runtime.telemetry import get_logger
from services.router.domain.refusals import Unavailable

log = get_logger(__name__)

T = TypeVar("T", bound=Message)

PATIENCE_S = 15.0
"""How long a change is tried: a NATS cluster may elect a leader for 8 s."""
_AT_ONCE = 32
WHY = "GET /ready tells what is missing, and the log of nats-server whether its disk is full"
_NOT_TAKEN = f"the bus did not take the change in time: try again; {WHY}"


@contextlib.contextmanager
def taken(what: str, said: str = _NOT_TAKEN, **about: Any) -> Iterator[None]:
    """Around a write: Unavailable, saying ``said``, where the bus did not take it; ``what`` (``about``) is logged."""
    try:
        yield
    except TRANSIENT as exc:
        log.warning(what, error=repr(exc), **about)
        raise Unavailable(said, retry_after_s=2) from exc


class Gone:
    """What a change gives to have the key deleted."""


GONE = Gone()


class KvTable(Generic[T]):
    """One bucket. ``took`` is called with (key, message or None) for everything that changes, quick and not async.

    ``same`` says whether what is stored is what this process wrote: a write whose answer got lost is not made twice.
    """

    def __init__(
        self, bus: Bus, bucket: str, kind: type[T], took: Callable[[str, T | None], None],
        same: Callable[[T, T], bool],
    ) -> None:  # fmt: skip
        self._bus = bus
        self._bucket = bucket
        self._kind = kind
        self._on = took
        self._same = same
        self._good: dict[str, T] = {}
        self._mirror = KvMirror(bus, bucket, self._took)
        self._kv: Any = None

    async def start(self) -> None:
        """Read the bucket and begin to watch it. Raises TimeoutError when the bus does not answer in time."""
        await self._mirror.start()

    async def stop(self) -> None:
        """End the watch."""
        await self._mirror.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._mirror.missing()

    async def set(
        self, name: str, act: Callable[[T | None], T | Gone | None], patience_s: float = PATIENCE_S
    ) -> T | None:
        """Change the entry of ``name``; the entry as ``act`` gave it, None where that gave none.

        ``act`` is asked again with the present state whenever somebody came between; None, or the very state that it
        was given, changes nothing. Raises what it raises, and Unavailable when the bus does not take the change.
        """
        written: T | None = None
        result: T | None = None

        def change(raw: bytes | None) -> bytes | None:
            nonlocal written, result
            state = self._read(key, raw) if raw else None
            if written is not None and state is not None and self._same(state, written):
                result = state  # the write before, whose answer never came, got through
                return None
            new = act(state)
            result = None if isinstance(new, Gone) else new
            if isinstance(new, Gone):
                return b"" if state is not None else None
            if new is None or new is state:
                return None
            written = new
            return new.model_dump_json().encode()

        key = subjects.token(name)
        with taken("entry_not_written", bucket=self._bucket):
            if self._kv is None:
                self._kv = await self._bus.js.key_value(self._bucket)
            value, revision = await compare_and_set(self._kv, key, change, patience_s=patience_s)
        if value:
            self._mirror.apply_own(key, value, revision)
        return result

    async def rewrite(self, name: str, act: Callable[[T], T | Gone | None]) -> bool:
        """Change an entry, or delete it (GONE), and leave no earlier revision of it behind; whether that was done.

        Nothing is done where ``act`` gives None or the very entry, and where somebody came between. Raises Unavailable.
        """
        key = subjects.token(name)
        subject = f"$KV.{self._bucket}.{key}"
        try:
            stored = await leaders(self._bus, self._bucket, key)
            if stored is None:
                return False
            entry = self._read(key, stored[0])
            new = act(entry) if entry is not None else None
            if new is None or new is entry:
                return False
            headers = {"Nats-Rollup": "sub", Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(stored[1])}
            if isinstance(new, Gone):
                await self._bus.js.publish(subject, headers={**headers, "KV-Operation": "PURGE"})
            else:
                await self._bus.js.publish(subject, new.model_dump_json().encode(), headers=headers)
        except APIError as exc:
            if exc.err_code != WRONG_LAST_SEQUENCE:
                raise self._unread(exc) from exc
            return False
        except TRANSIENT as exc:
            raise self._unread(exc) from exc
        return True

    async def fresh(self, name: str) -> T | None:
        """The entry as the bucket's leader has it now. Raises Unavailable."""
        try:
            return await self._leaders(subjects.token(name))
        except TRANSIENT as exc:
            raise self._unread(exc) from exc

    async def fresh_all(self) -> list[T]:
        """Every entry as the bucket's leader has it now: whatever was written before the call is in it."""
        prefix = f"$KV.{self._bucket}."
        some = asyncio.Semaphore(_AT_ONCE)

        async def read(key: str) -> T | None:
            async with some:
                return await self._leaders(key)

        try:
            info = await self._bus.js.stream_info(f"KV_{self._bucket}", subjects_filter=f"{prefix}>")
            keys = [subject.removeprefix(prefix) for subject in info.state.subjects or {}]
            found = await asyncio.gather(*(read(key) for key in keys))
        except TRANSIENT as exc:
            raise self._unread(exc) from exc
        return [entry for entry in found if entry is not None]

    def _unread(self, exc: BaseException) -> Unavailable:
        log.warning("entry_not_read", bucket=self._bucket, error=repr(exc))
        return Unavailable("the bus did not answer in time: try again", retry_after_s=2)

    async def _leaders(self, key: str) -> T | None:
        stored = await leaders(self._bus, self._bucket, key)
        return None if stored is None else self._read(key, stored[0])

    def _read(self, key: str, value: bytes) -> T | None:
        """The entry; where it cannot be read the last good one stays in force, until the next change mends it."""
        try:
            return self._kind.model_validate_json(value)
        except ValidationError as exc:
            log.error("entry_unreadable", bucket=self._bucket, key=key, errors=exc.error_count())
            return self._good.get(key)

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None:
            self._good.pop(key, None)
            self._on(key, None)
            return
        before = self._good.get(key)
        entry = self._read(key, value)
        if entry is None or entry is before:
            return
        self._good[key] = entry
        self._on(key, entry)
