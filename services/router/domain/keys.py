"""What becomes of API keys: made, rotated with an overlap, revoked; and which of them are good at a moment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.v1.alerts import Alert
from schemas.v1.common import AlertLevel, rfc3339
from schemas.v1.keys import KeyEntry, RoleName
from services.router.domain.auth import Principal, Role, StoredKey
from services.router.domain.refusals import Conflict, NotFound

MAX_KEYS = 1000
"""Keys that are good at one time."""
RESERVED = frozenset({"anonymous"})
"""What the audit calls those without a key."""

SOON_MS = 7 * 86_400_000
"""How long before its end a key is said to end soon."""
WORTH_TELLING_MS = 30 * 86_400_000
"""Alerts are kept for so long, and so may stand."""

State = Literal["active", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be made; ``expires_ms`` None: never; limits None: those of the configuration."""

    name: str
    role: RoleName
    sha256: str
    actor: str
    expires_ms: int | None = None
    requests_per_minute: int | None = None
    control_per_minute: int | None = None


def place(entry: KeyEntry) -> str:
    """The name under which an entry is stored."""
    return entry.name if entry.source == "api" else revocation_place(entry.sha256)


def revocation_place(sha256: str) -> str:
    """Where the revocation of a configured key is stored. No key can be named like that."""
    return f"sha256:{sha256}"


def state(entry: KeyEntry, now_ms: int) -> State:
    """What an entry is at a moment."""
    if entry.revoked_ms is not None:
        return "revoked"
    return "expired" if entry.expires_ms is not None and entry.expires_ms <= now_ms else "active"


def good(
    configured: Sequence[StoredKey], entries: Iterable[KeyEntry], now_ms: int
) -> tuple[list[StoredKey], int | None]:
    """The keys that are good now, and the moment (Unix ms) at which the first of them ends by itself, None for never.

    A revoked hash is good nowhere, whoever else names it.
    """
    entries = list(entries)
    revoked = _revoked(entries)
    found = {key.digest: key for key in configured if key.digest.hex() not in revoked}
    ends = []
    for entry in entries:
        if entry.source != "api" or state(entry, now_ms) != "active":
            continue
        principal = Principal(
            entry.name, Role.named(entry.role), entry.requests_per_minute, entry.control_per_minute
        )
        for sha256, until in ((entry.sha256, entry.expires_ms), (entry.previous_sha256, entry.previous_until_ms)):
            if sha256 is None or sha256 in revoked or (until is not None and until <= now_ms):
                continue
            digest = bytes.fromhex(sha256)
            found.setdefault(digest, StoredKey(principal, digest))
            if until is not None:
                ends.append(until)
    return list(found.values()), min(ends, default=None)


def create(
    present: KeyEntry | None, new: NewKey, configured: Sequence[StoredKey], entries: Iterable[KeyEntry], now_ms: int
) -> KeyEntry:
    """The entry of a new key. Raises Conflict where the name is taken, or there are too many.

    The name of a key that has expired or was revoked may be used again.
    """
    if new.name in RESERVED or any(key.principal.name == new.name for key in configured):
        raise Conflict(
            f"the name '{new.name}' is taken by the configuration: choose another", param="name", code="key_exists"
        )
    if present is not None and state(present, now_ms) == "active":
        raise Conflict(
            f"there is a key '{new.name}' already: choose another name, rotate it, or revoke it first",
            param="name", code="key_exists",
        )  # fmt: skip
    active = sum(entry.source == "api" and state(entry, now_ms) == "active" for entry in entries)
    if active >= MAX_KEYS:
        raise Conflict(f"there are {active} keys already: revoke those that nobody uses", code="too_many_keys")
    return KeyEntry(
        name=new.name, role=new.role, sha256=new.sha256, created_ms=now_ms, created_by=new.actor,
        expires_ms=new.expires_ms, requests_per_minute=new.requests_per_minute,
        control_per_minute=new.control_per_minute,
    )  # fmt: skip


def rotate(
    present: KeyEntry | None, name: str, sha256: str, overlap_ms: int, actor: str, configured: Sequence[StoredKey],
    now_ms: int, expires_ms: int | None = None,
) -> KeyEntry:  # fmt: skip
    """The entry with a new key in place of the present one, which stays good for ``overlap_ms``. The new one ends at
    ``expires_ms``, or when the present one would have; limits stay.

    Of two rotations within an overlap, the second ends the oldest key at once. Raises NotFound and Conflict.
    """
    if present is None:
        if any(key.principal.name == name for key in configured):
            raise Conflict(
                f"the key '{name}' comes from the configuration: put a new one there (key_env or key_sha256) and "
                "restart the routers, or create another key here and revoke this one",
                param="name", code="key_is_configured",
            )  # fmt: skip
        raise _unknown(name)
    found = state(present, now_ms)
    if found != "active":
        raise Conflict(f"the key '{name}' is {found}: create it anew", param="name", code=f"key_{found}")
    until = now_ms + overlap_ms if present.expires_ms is None else min(now_ms + overlap_ms, present.expires_ms)
    return present.model_copy(update={
        "sha256": sha256, "previous_sha256": present.sha256 if overlap_ms else None,
        "previous_until_ms": until if overlap_ms else 0, "rotated_ms": now_ms, "rotated_by": actor,
        "expires_ms": present.expires_ms if expires_ms is None else expires_ms,
    })  # fmt: skip


def revocations(
    name: str, configured: Sequence[StoredKey], entries: Iterable[KeyEntry], actor: str, now_ms: int
) -> list[KeyEntry]:
    """The entries that end every key of that name; none where all have ended already.

    Raises NotFound for a name that nobody has, and Conflict for the last admin's key that lasts.
    """
    entries = list(entries)
    revoked = _revoked(entries)
    named = [entry for entry in entries if entry.source == "api" and entry.name == name]
    fixed = [key for key in configured if key.principal.name == name]
    if not named and not fixed:
        raise _unknown(name)
    ended = [
        entry.model_copy(update={"revoked_ms": now_ms, "revoked_by": actor})
        for entry in named
        if entry.revoked_ms is None
    ]
    ended += [
        KeyEntry(
            name=name, role=role_name(key), sha256=key.digest.hex(), source="config", revoked_ms=now_ms,
            revoked_by=actor,
        )
        for key in fixed
        if key.digest.hex() not in revoked
    ]  # fmt: skip
    if any(entry.role == "admin" for entry in ended):
        places = {place(entry) for entry in ended}
        keep_an_admin(configured, [*(e for e in entries if place(e) not in places), *ended])
    return ended


def keep_an_admin(configured: Sequence[StoredKey], entries: Iterable[KeyEntry]) -> None:
    """Raises Conflict where no admin's key would be left that lasts: nobody could make another one then.

    Keys that expire do not count: the last of them would end unnoticed.
    """
    entries = list(entries)
    revoked = _revoked(entries)
    if any(key.principal.role is Role.ADMIN and key.digest.hex() not in revoked for key in configured):
        return
    if any(
        entry.source == "api" and entry.role == "admin" and entry.expires_ms is None and entry.sha256 not in revoked
        for entry in entries
    ):
        return
    raise Conflict(
        "this is the last admin's key that does not expire, and without one nobody could make keys any more: create "
        "another admin's key without an expiry first",
        param="name", code="last_admin_key",
    )  # fmt: skip


def ends_soon(entry: KeyEntry, now_ms: int) -> bool:
    """Whether a good key ends by itself within SOON_MS; of one that was made for less than twice that, whether half of
    its life is over.
    """
    if state(entry, now_ms) != "active" or entry.expires_ms is None:
        return False
    return now_ms >= _notice_ms(entry, entry.expires_ms)


def _notice_ms(entry: KeyEntry, expires_ms: int) -> int:
    return expires_ms - min(SOON_MS, (expires_ms - entry.created_ms) // 2)


def expiry(entry: KeyEntry, now_ms: int, *, told: bool = False) -> Alert | None:
    """What is to be told of a key's end: that it is near, or that this is over; the same from every router.

    None where nothing is, or it was over before WORTH_TELLING_MS. ``told``: a key of that name was near its end.
    """
    if entry.source != "api":
        return None
    whose = f"The key '{entry.name}' of role {entry.role}"
    incident, rule = expiry_incident(entry.name), "key_expiry"
    if ends_soon(entry, now_ms) and entry.expires_ms is not None:
        return Alert(
            incident=incident, level=AlertLevel.WARNING, title=f"API key '{entry.name}' expires soon", rule=rule,
            message=f"{whose} expires at {rfc3339(entry.expires_ms)}, and whoever uses it is refused from then on. "
            f"`cypria keys rotate {entry.name} --expires-in-days DAYS` puts one that lasts longer in its place.",
            at_ms=_notice_ms(entry, entry.expires_ms),
        )  # fmt: skip
    over_ms: int | None
    if entry.revoked_ms is not None:
        over_ms, how = entry.revoked_ms, "was revoked"
    elif state(entry, now_ms) == "expired":
        over_ms, how = entry.expires_ms, "has expired"
    elif entry.rotated_ms is not None:
        over_ms, how = entry.rotated_ms, "was rotated"
    else:
        over_ms, how = (entry.created_ms if told else None), "was made anew"
    if over_ms is None or over_ms + WORTH_TELLING_MS < now_ms:
        return None
    return Alert(
        incident=incident, level=AlertLevel.INFO, title=f"API key '{entry.name}' {how}", rule=rule, at_ms=over_ms,
        message=f"{whose} {how} at {rfc3339(over_ms)}.", resolved=True,
    )  # fmt: skip


def expiry_incident(name: str) -> str:
    """The incident of a key that ends soon."""
    return f"key.{name}.expiry"


def forgettable(entry: KeyEntry, now_ms: int, kept_ms: int) -> bool:
    """Whether an entry tells nothing any more: a key made here that ended longer than ``kept_ms`` ago."""
    if entry.source != "api" or state(entry, now_ms) == "active":
        return False
    ended = entry.revoked_ms if entry.revoked_ms is not None else entry.expires_ms
    return ended is not None and ended + kept_ms < now_ms


def moment(at_ms: int | None) -> str | None:
    """RFC 3339, or None."""
    return None if at_ms is None else rfc3339(at_ms)


def _revoked(entries: Iterable[KeyEntry]) -> set[str]:
    return {
        sha256
        for entry in entries
        if entry.revoked_ms is not None
        for sha256 in (entry.sha256, entry.previous_sha256)
        if sha256 is not None
    }


def role_name(key: StoredKey) -> RoleName:
    """The role of a key as messages spell it."""
    role: RoleName = key.principal.role.label  # type: ignore[assignment]
    return role


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no key '{name}': `cypria keys list` names them all", param="name", code="key_not_found")
