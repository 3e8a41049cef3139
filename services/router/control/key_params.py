"""What the verbs of keys take and give. A key itself is in two answers only: where it is made or rotated."""

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from schemas.v1.control import Command
from schemas.v1.keys import RoleName

NAME = r"^[A-Za-z0-9_.-]+$"
NEW_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
DAY_S = 86_400
MAX_DAYS = 366
MAX_PER_MINUTE = 1_000_000


class _Ending(Command):
    """``expires_in_days`` (366 at most; later ends go as a date), or ``expires_at`` (RFC 3339)."""

    expires_in_days: float | None = Field(default=None, gt=0)
    expires_at: str | None = Field(default=None, max_length=64)

    @field_validator("expires_in_days")
    @classmethod
    def _within_a_year(cls, days: float | None) -> float | None:
        if days is not None and days > MAX_DAYS:
            raise ValueError(f"give at most {MAX_DAYS} days, or a later end as expires_at")
        return days

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.expires_in_days is not None and self.expires_at is not None:
            raise ValueError("expires_in_days and expires_at are both given: give one of them")
        return self


class KeyCreateParams(_Ending):
    """A new key; without an end it does not expire. Its own limits, over all routers, replace the configured ones:
    ``requests_per_minute`` of inference (and of feedback), ``control_per_minute`` of the control API.
    """

    name: str = Field(min_length=1, max_length=128, pattern=NEW_NAME)
    role: RoleName
    requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_PER_MINUTE)
    control_per_minute: int | None = Field(default=None, ge=1, le=MAX_PER_MINUTE)


class KeyParams(Command):
    """One key by name."""

    name: str = Field(min_length=1, max_length=128, pattern=NAME)


class KeyRotateParams(KeyParams, _Ending):
    """``overlap_seconds``: so long the key before stays good as well; an hour by default, 30 days at most.

    Without an end of its own the new key ends when the one before would have.
    """

    overlap_seconds: int = Field(default=3600, ge=0, le=30 * DAY_S)


class KeyShown(BaseModel):
    """One key without the key. ``ends_soon``: within 7 days, or less where it was made for less than 14.

    ``previous_until``: until then the key before the last rotation is good as well.

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
    ends_soon: bool = False
    requests_per_minute: int | None = None
    control_per_minute: int | None = None


class KeysShown(BaseModel):
    """All keys, by name."""

    keys: list[KeyShown]


class KeyMade(KeyShown):
    """A key that was made just now; ``key`` is shown this once and kept nowhere."""

    key: str
