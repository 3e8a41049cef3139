"""API keys as routers share them: what the KV bucket `keys` holds."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.v1.common import Message, UnixMs

RoleName = Literal["client", "viewer", "operator", "admin"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeyEntry(Message):
    """One key; never the key itself, only the SHA-256 of its UTF-8 bytes.

    ``source`` ``api``: made over the API, stored under its name. ``config``: the revocation of a key that a configuration
    names, stored under its hash, so that another key under the same name is another key.
    ``requests_per_minute`` (inference) and ``control_per_minute`` are its own limits; None: those of the configuration.
    ``previous_sha256`` is the key before the last rotation, good until ``previous_until_ms``.
    """

    name: str
    role: RoleName
    sha256: Sha256
    source: Literal["api", "config"] = "api"
    created_ms: UnixMs = 0
    created_by: str = ""
    expires_ms: UnixMs | None = None
    rotated_ms: UnixMs | None = None
    rotated_by: str = ""
    previous_sha256: Sha256 | None = None
    previous_until_ms: UnixMs = 0
    revoked_ms: UnixMs | None = None
    revoked_by: str = ""
    requests_per_minute: int | None = None
    control_per_minute: int | None = None
