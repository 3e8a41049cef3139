"""Bearer keys and the four roles. Keys are known by their SHA-256 only."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.router.domain.refusals import Forbidden, Unauthenticated

_MAX_TOKEN = 4096


class Role(IntEnum):
    """Each role includes those before it."""

    CLIENT = 1
    VIEWER = 2
    OPERATOR = 3
    ADMIN = 4

    @property
    def label(self) -> str:
        """As the configuration spells it."""
        return self.name.lower()

    @classmethod
    def named(cls, label: str) -> "Role":
        """The role that the configuration spells so; raises KeyError."""
        return cls[label.upper()]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request: the key's name and role, and its own limits where it has some."""

    name: str
    role: Role
    requests_per_minute: int | None = None
    control_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is kept: ``digest`` is the SHA-256 of its UTF-8 bytes."""

    principal: Principal
    digest: bytes


class KeyRing:
    """The keys that are good now, by hash: looking one up is one look in a table, however many there are.

    A table's timing tells nothing about the keys in it: nobody can aim at the bytes of a SHA-256.
    ``configured`` are those of the configuration, good or revoked.
    """

    def __init__(self, keys: Sequence[StoredKey]) -> None:
        self.configured = tuple(keys)
        self._good = {key.digest: key.principal for key in keys}
        self._changed: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._good)

    def take(self, keys: Iterable[StoredKey]) -> None:
        """From now on these are good and no others; whoever asked for it is told where that changes something."""
        good = {key.digest: key.principal for key in keys}
        if good != self._good:
            self._good = good
            for changed in self._changed:
                changed()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after every change of what is good (quick, not async)."""
        self._changed.append(changed)

    def principal(self, token: str) -> Principal | None:
        """Whose key this is, or None."""
        return self._good.get(digest_of(token))

    def holder(self, digest: bytes) -> Principal | None:
        """Whose key has this hash, or None."""
        return self._good.get(digest)


def digest_of(token: str) -> bytes:
    """What is kept of a key; nothing of what is too long to be one."""
    if len(token) > _MAX_TOKEN:
        return b""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def still_good(ring: KeyRing, header: str | None) -> Callable[[], bool]:
    """A question to be asked again and again: is the key of this header good, as it is now? The key itself is not kept.

    Raises Unauthenticated for a header that holds none.
    """
    digest = digest_of(bearer(header))
    holder = ring.holder(digest)
    return lambda: holder is not None and ring.holder(digest) == holder


def require(principal: Principal, needed: Role) -> None:
    """Raises Forbidden when the principal's role is too small."""
    if principal.role < needed:
        raise Forbidden(
            f"key '{principal.name}' has the role {principal.role.label}; this needs {needed.label}: "
            "use a key with that role"
        )


def bearer(header: str | None) -> str:
    """The key in an `Authorization` header; raises Unauthenticated where there is none."""
    if not header:
        raise Unauthenticated(
            "no API key: send the header 'Authorization: Bearer KEY'", code="missing_api_key"
        )
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the Authorization header must read 'Bearer KEY'")
    return token
