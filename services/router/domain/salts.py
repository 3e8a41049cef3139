"""Salts of unit hashes, one for each test: how a unit is hashed under it, and when it is destroyed. Pure."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from schemas.v1.common import unix_ms
from schemas.v1.experiment import Experiment
from services.router.domain.assignment import MAX_KEY

ROOT_VERSION = 1
"""Version of tests that were started before each had a salt of its own: their units are hashed under the root salt."""
SALT_BYTES = 32
ORPHANED_MS = 600_000
"""A salt younger than this may be of a test whose entry is being written."""


@dataclass(frozen=True, slots=True, repr=False)
class TestSalt:
    """The salt that ``version`` names: random bytes, the test that it was made for, and when (Unix ms)."""

    __test__ = False

    version: int
    test_id: str
    salt: bytes
    created_ms: int


def unit_key(root: bytes, salt: bytes) -> bytes:
    """What the units of one test are hashed under: neither salt alone gives it, and without it no hash can be tried."""
    key = root if len(root) <= MAX_KEY else hashlib.blake2b(root).digest()
    return hashlib.blake2b(salt, digest_size=32, key=key, person=b"cypria-unit-salt").digest()


def alias(root: bytes, unit: bytes) -> str:
    """How the audit names a unit that was exported or erased: 16 hex digits that are in no fact and no window."""
    key = root if len(root) <= MAX_KEY else hashlib.blake2b(root).digest()
    return hashlib.blake2b(unit, digest_size=8, key=key, person=b"cypria-audit").hexdigest()


def encode(salt: TestSalt) -> bytes:
    """As it is stored; the version is the entry's name."""
    return json.dumps({"test_id": salt.test_id, "salt": salt.salt.hex(), "created_ms": salt.created_ms}).encode()


def decode(version: int, raw: bytes) -> TestSalt:
    """The salt that `encode` wrote. Raises ValueError for anything else."""
    value = json.loads(raw)
    try:
        salt = TestSalt(version, str(value["test_id"]), bytes.fromhex(value["salt"]), int(value["created_ms"]))
    except (KeyError, TypeError) as exc:
        raise ValueError(f"not a unit salt: {type(exc).__name__}") from None
    if len(salt.salt) < SALT_BYTES:
        raise ValueError(f"a unit salt of {len(salt.salt)} bytes")
    return salt


def over(salts: Iterable[TestSalt], entries: Iterable[Experiment], now_ms: int, grace_ms: int) -> list[TestSalt]:
    """Salts that nothing needs any more: their test ended ``grace_ms`` ago, or no entry has ever heard of it.

    ``entries`` must be all there are; a test that is live keeps its salt whatever its age.
    """
    live: set[str] = set()
    ended: dict[str, int] = {}
    for entry in entries:
        if entry.live:
            live.add(entry.test_id)
        else:
            ended[entry.test_id] = entry.ended_ms or entry.created_ms
        for result in entry.recent:
            ended.setdefault(result.test_id, unix_ms(result.end_time) if result.end_time else 0)
    return [
        salt
        for salt in salts
        if salt.test_id not in live
        and now_ms
        >= (
            ended[salt.test_id] + grace_ms
            if salt.test_id in ended
            else salt.created_ms + max(grace_ms, ORPHANED_MS)
        )
    ]
