"""The verbs of keys: made here, shown once, kept as hashes."""

import hashlib
import secrets

from schemas.v1.keys import KeyEntry
from services._runtime.clock import now_ms
from services.router.control import audited
from services.router.control import key_params as p
from services.router.control.base import Done
from services.router.control.params import NoParams
from services.router.control.parts import Parts
from services.router.domain import keys as domain
from services.router.domain.auth import KeyRing, Principal, StoredKey
from services.router.domain.keys import NewKey
from services.router.domain.starting import future_ms

PREFIX = "cyp_"
"""By which scanners for leaked secrets, and people, know what they see."""
_BYTES = 32
_OF_KEY = {
    "role", "source", "state", "expires_at", "rotated_at", "previous_until", "requests_per_minute",
    "control_per_minute",
}  # fmt: skip
"""What the audit shows of a key."""


class KeyHandlers:
    """One method for each verb: ``(principal, params) -> Done``. All raise Refused."""

    def __init__(self, parts: Parts, ring: KeyRing) -> None:
        self._keys = parts.keys
        self._ring = ring

    async def keys(self, _who: Principal, _params: NoParams) -> Done:
        """Every key that there is or was, without the keys."""
        now = now_ms()
        entries = self._keys.entries()
        shown = [_shown(entry, now) for entry in entries if entry.source == "api"]
        shown += [_configured(key, entries) for key in self._ring.configured]
        return Done(p.KeysShown(keys=sorted(shown, key=lambda key: (key.name, key.source))))

    async def keys_create(self, who: Principal, params: p.KeyCreateParams) -> Done:
        """The key, this once. 409 where the name is taken, 422 for an end that is past."""
        now = now_ms()
        ends = _end(params, now)
        key, sha256 = _make()
        new = NewKey(
            params.name, params.role, sha256, who.name, ends, params.requests_per_minute, params.control_per_minute
        )
        before = self._figures(params.name)
        with audited.found(lambda: before):
            entry = await self._keys.create(new)
        return Done(_made(entry, key), target=params.name, before=before, after=self._figures(params.name))

    async def keys_rotate(self, who: Principal, params: p.KeyRotateParams) -> Done:
        """Another key in the place of one, this once. 404 for an unknown name, 409 for one of the configuration."""
        ends = _end(params, now_ms())
        key, sha256 = _make()
        before = self._figures(params.name)
        with audited.found(lambda: before):
            entry = await self._keys.rotate(params.name, sha256, params.overlap_seconds * 1000, who.name, ends)
        return Done(_made(entry, key), target=params.name, before=before, after=self._figures(params.name))

    async def keys_revoke(self, who: Principal, params: p.KeyParams) -> Done:
        """End a key at once; what has ended already stays so. 404 for an unknown name, 409 for the last admin's."""
        before = self._figures(params.name)
        with audited.found(lambda: before):
            await self._keys.revoke(params.name, who.name)
        shown = self._named(params.name)
        if shown is None:
            raise RuntimeError("a key was revoked that is not there")
        return Done(shown, target=params.name, before=before, after=self._figures(params.name))

    # ------------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> p.KeyShown | None:
        """The key of a name: the one that was made here, else the configured one."""
        entries = self._keys.entries()
        made = next((e for e in entries if e.source == "api" and e.name == name), None)
        if made is not None:
            return _shown(made, now_ms())
        fixed = next((key for key in self._ring.configured if key.principal.name == name), None)
        return None if fixed is None else _configured(fixed, entries)

    def _figures(self, name: str) -> audited.Shown | None:
        """What a record of a change shows of a key: no hash of anything."""
        shown = self._named(name)
        return None if shown is None else shown.model_dump(include=_OF_KEY, exclude_none=True)


def _end(params: p.KeyCreateParams | p.KeyRotateParams, now: int) -> int | None:
    """When a key is to end (Unix ms). Raises Unprocessable for what is past."""
    if params.expires_at is not None:
        return future_ms(params.expires_at, "expires_at", now)
    if params.expires_in_days is not None:
        return now + max(1, round(params.expires_in_days * p.DAY_S * 1000))
    return None


def _make() -> tuple[str, str]:
    """A new key of 256 random bits, and its hash."""
    key = PREFIX + secrets.token_urlsafe(_BYTES)
    return key, hashlib.sha256(key.encode()).hexdigest()


def _made(entry: KeyEntry, key: str) -> p.KeyMade:
    return p.KeyMade(key=key, **_shown(entry, now_ms()).model_dump())


def _shown(entry: KeyEntry, now: int) -> p.KeyShown:
    overlaps = entry.previous_sha256 is not None and entry.previous_until_ms > now
    return p.KeyShown(
        name=entry.name, role=entry.role, source="api", state=domain.state(entry, now),
        created_at=domain.moment(entry.created_ms), created_by=entry.created_by or None,
        expires_at=domain.moment(entry.expires_ms), rotated_at=domain.moment(entry.rotated_ms),
        previous_until=domain.moment(entry.previous_until_ms) if overlaps else None,
        revoked_at=domain.moment(entry.revoked_ms), revoked_by=entry.revoked_by or None,
        ends_soon=domain.ends_soon(entry, now), requests_per_minute=entry.requests_per_minute,
        control_per_minute=entry.control_per_minute,
    )  # fmt: skip


def _configured(key: StoredKey, entries: list[KeyEntry]) -> p.KeyShown:
    """A key of the configuration; revoked where any entry has revoked its hash."""
    digest = key.digest.hex()
    ended = next((e for e in entries if e.revoked_ms is not None and digest in {e.sha256, e.previous_sha256}), None)
    return p.KeyShown(
        name=key.principal.name, role=domain.role_name(key), source="config",
        state="active" if ended is None else "revoked",
        revoked_at=domain.moment(ended.revoked_ms) if ended else None, revoked_by=ended.revoked_by if ended else None,
        requests_per_minute=key.principal.requests_per_minute, control_per_minute=key.principal.control_per_minute,
    )  # fmt: skip
