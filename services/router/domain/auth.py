"""Bearer keys and the four roles. Keys are known by their SHA-256 only."""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.router.domain.refusals import Forbidden, Unauthenticated

_CACHE_LIMIT = 1024
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
    """Who sent a request: the key's name and role."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key as it is kept: ``digest`` is the SHA-256 of its UTF-8 bytes."""

    principal: Principal
    digest: bytes


class KeyRing:
    """All keys. Looking one up compares it with every key in constant time, then remembers good ones."""

    def __init__(self, keys: Sequence[StoredKey]) -> None:
        self._keys = tuple(keys)
        self._good: OrderedDict[bytes, Principal] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def principal(self, token: str) -> Principal | None:
        """Whose key this is, or None."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        # Remembering by digest leaks nothing by its timing: nobody can aim at a digest's bytes.
        known = self._good.get(digest)
        if known is not None:
            return known
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.principal
        if found is not None:
            self._good[digest] = found
            if len(self._good) > _CACHE_LIMIT:
                self._good.popitem(last=False)
        return found


def authorize(ring: KeyRing, header: str | None, needed: Role) -> Principal:
    """The principal behind an `Authorization` header, if its role is enough.

    Raises Unauthenticated (401) without a good key and Forbidden (403) with too small a role.
    """
    principal = authenticate(ring, header)
    require(principal, needed)
    return principal


def require(principal: Principal, needed: Role) -> None:
    """Raises Forbidden when the principal's role is too small."""
    if principal.role < needed:
        raise Forbidden(
            f"key '{principal.name}' has the role {principal.role.label}; this needs {needed.label}: "
            "use a key with that role"
        )


def authenticate(ring: KeyRing, header: str | None) -> Principal:
    """The principal behind an `Authorization` header; raises Unauthenticated."""
    if not header:
        raise Unauthenticated(
            "no API key: send the header 'Authorization: Bearer KEY'", code="missing_api_key"
        )
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("the Authorization header must read 'Bearer KEY'")
    principal = ring.principal(token) if len(token) <= _MAX_TOKEN else None
    if principal is None:
        raise Unauthenticated(
            "unknown API key: send one that the configuration names, or ask an admin for one"
        )
    return principal
