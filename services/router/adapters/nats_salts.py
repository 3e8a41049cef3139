"""The unit salts of all tests in the bucket `salts`: a mirror in memory, making one, destroying one."""

import asyncio
import secrets

from schemas.streams import SALTS
from schemas.v1.experiment import Experiment
from services._runtime.bus import TRANSIENT, Bus, compare_and_set, erase_last
from services._runtime.clock import now_ms
from services._runtime.kv import KvMirror, leaders
from services._runtime.tasks import end
from services._runtime.telemetry import get_logger
from services.router.adapters.kv_table import WHY, taken
from services.router.domain.salts import ROOT_VERSION, SALT_BYTES, TestSalt, alias, decode, encode, unit_key

log = get_logger(__name__)

_STREAM = f"KV_{SALTS.name}"
_RETRY_S = 0.1


class UnitSalts:
    """Implements `ports.Salts`. ``root`` is the salt that all others are hashed under, and the one of version 1."""

    def __init__(self, bus: Bus, root: bytes) -> None:
        self._bus = bus
        self._root = root
        self._mirror = KvMirror(bus, SALTS.name, self._took)
        self._salts: dict[int, TestSalt] = {}
        self._keys: dict[int, bytes] = {ROOT_VERSION: root}
        self._fetching: dict[int, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Read the bucket and begin to watch it. Raises TimeoutError when the bus does not answer in time."""
        await self._mirror.start()

    async def stop(self) -> None:
        """End the watch."""
        await end(*self._fetching.values())
        await self._mirror.stop()

    def missing(self) -> str | None:
        """For readiness checks."""
        return self._mirror.missing()

    def key(self, version: int) -> bytes | None:
        """What the units of a test of this version are hashed under; None while its salt has not come, or is gone."""
        return self._keys.get(version)

    def alias(self, unit: bytes) -> str:
        """How the audit names a unit."""
        return alias(self._root, unit)

    def all(self) -> list[TestSalt]:
        """Every salt there is but the root, oldest first."""
        return [self._salts[version] for version in sorted(self._salts)]

    def expect(self, test: Experiment) -> None:
        """The test's entry has come: fetch its salt, should the watch of the salts be behind. Returns at once."""
        version = test.unit_salt_version
        if test.live and version not in self._keys and version not in self._fetching:
            task = asyncio.create_task(self._fetch(version), name=f"unit-salt-{version}")
            self._fetching[version] = task
            task.add_done_callback(lambda _task: self._fetching.pop(version, None))

    async def make(self, test_id: str) -> int:
        """A new salt for a test that is about to start; its version. Known to this router when this returns.

        The version is the time, so that salts sort by age. Raises Unavailable when the bus does not take it.
        """
        salt = TestSalt(max(now_ms(), ROOT_VERSION + 1), test_id, secrets.token_bytes(SALT_BYTES), now_ms())
        raw = encode(salt)
        said = f"the bus did not take the test's salt in time: try again; {WHY}"
        with taken("unit_salt_not_written", said, test_id=test_id):
            kv = await self._bus.js.key_value(SALTS.name)
            while True:
                key = str(salt.version)
                value, revision = await compare_and_set(kv, key, lambda present: None if present else raw)
                if value == raw:
                    break
                salt = TestSalt(salt.version + 1, test_id, salt.salt, salt.created_ms)
        self._mirror.apply_own(key, raw, revision)
        return salt.version

    async def destroy(self, version: int) -> bool:
        """Overwrite a salt where it is stored and forget it; False when another router has done it before.

        Raises Unavailable when the bus does not answer.
        """
        name = str(version)
        with taken("unit_salt_not_destroyed", version=version):
            done = await erase_last(self._bus, _STREAM, f"$KV.{SALTS.name}.{name}")
        self._mirror.entries.pop(name, None)
        self._forget(version)
        return done

    async def _fetch(self, version: int) -> None:
        name = str(version)
        while version not in self._keys:
            try:
                stored = await leaders(self._bus, SALTS.name, name)
            except TRANSIENT as exc:
                log.debug("unit_salt_not_read", version=version, error=repr(exc))
                await asyncio.sleep(_RETRY_S)
                continue
            if stored is None:
                log.error("unit_salt_missing", version=version, remedy="stop the test and start it anew")
            else:
                self._mirror.apply_own(name, *stored)
            return

    def _took(self, key: str, value: bytes | None, _revision: int) -> None:
        try:
            version = int(key)
            salt = None if value is None else decode(version, value)
        except (ValueError, OverflowError, RecursionError) as exc:
            log.error("unit_salt_unreadable", key=key, error=repr(exc))
            return
        if salt is None:
            self._forget(version)
            return
        self._salts[version] = salt
        self._keys[version] = unit_key(self._root, salt.salt)

    def _forget(self, version: int) -> None:
        self._salts.pop(version, None)
        if version != ROOT_VERSION:
            self._keys.pop(version, None)
