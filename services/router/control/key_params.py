"""What the verbs of keys take and give. A key itself is in two answers only: where it is made or rotated."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from schemas.v1.control import Command
from schemas.v1.keys import RoleName

NAME = r"^[A-Za-z0-9_.-]+$"
NEW_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
DAY_S = 86_400
MAX_DAYS = 366


class KeyCreateParams(Command):
    """A new key; without ``expires_in_days`` and ``expires_at`` (RFC 3339) it does not expire."""

    name: str = Field(min_length=1, max_length=128, pattern=NEW_NAME)
    role: RoleName
    expires_in_days: float | None = Field(default=None, gt=0, le=MAX_DAYS)
    expires_at: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _one_end(self) -> "KeyCreateParams":
        if self.expires_in_days is not None and self.expires_at is not None:
            raise ValueError("expires_in_days and expires_at are both given: give one of them")
        return self


class KeyParams(Command):
    """One key by name."""

    name: str = Field(min_length=1, max_length=128, pattern=NAME)


class KeyRotateParams(KeyParams):
    """``overlap_seconds``: so long the key before stays good as well; an hour by default, 30 days at most."""

    overlap_seconds: int = Field(default=3600, ge=0, le=30 * DAY_S)


class KeyShown(BaseModel):
    """One key without the key. ``previous_until``: until then the key before the last rotation is good as well.

    ``source`` ``config``: named by the configuration of the router that answers; of those only the revocation is known.
    """

    name: str
    role: RoleName
    source: Literal["api", "config"]
    state: Literal["active", "expired", "revoked"]
    created_at: str | None = None
    created_by: str | None = None
    expires_at: str | None = None
    rotated_at: str | None = None
    previous_until: str | None = None
    revoked_at: str | None = None
    revoked_by: str | None = None


class KeysShown(BaseModel):
    """All keys, by name."""

    keys: list[KeyShown]


class KeyMade(KeyShown):
    """A key that was made just now; ``key`` is shown this once and kept nowhere."""

    key: str
