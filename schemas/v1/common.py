"""What all messages share: the base model and the words of the field."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

ShareBp = Annotated[int, Field(ge=0, le=10_000)]
"""A share of traffic in hundredths of a percent (10,000 = all of it)."""

VariantName = Annotated[str, Field(pattern=r"^[a-z]$")]
UnixMs = Annotated[int, Field(ge=0)]


def _fits_into_subjects(name: str) -> str:
    size = len(name.encode())
    if size > MAX_NAME:
        raise ValueError(f"has {size} bytes in UTF-8, and may have {MAX_NAME}: shorten it")
    return name


MAX_NAME = 512
"""Bytes of a model's name: in a subject each may become three, and a server ends the connection of whoever sends it a
line of more than 4096."""
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_fits_into_subjects)]


class Message(BaseModel):
    """Base of all messages: unknown fields of a newer writer are ignored, types are strict enough to trust."""

    model_config = ConfigDict(extra="ignore", frozen=False, ser_json_inf_nan="null")


class Outcome(StrEnum):
    """How a request ended, known only when its stream ends."""

    OK = "ok"
    ERROR_BEFORE_FIRST_TOKEN = "error_before_first_token"  # noqa: S105
    ERROR_MID_STREAM = "error_mid_stream"
    CLIENT_CANCEL = "client_cancel"
    TIMEOUT = "timeout"
    REJECTED = "rejected"
    LENGTH = "length"
    EMPTY = "empty"
    INVALID_JSON = "invalid_json"
    INVALID_TOOL_CALL = "invalid_tool_call"
    REPETITION = "repetition"
    CLIENT_ERROR = "client_error"


ERRORS = frozenset(
    {Outcome.ERROR_BEFORE_FIRST_TOKEN, Outcome.ERROR_MID_STREAM, Outcome.TIMEOUT, Outcome.REJECTED}
)
"""The outcomes that count as the variant's errors; the rest are successes, except the caller's own."""

NEUTRAL = frozenset({Outcome.CLIENT_CANCEL, Outcome.CLIENT_ERROR})
"""Neither a success nor an error of the variant."""


class TestStatus(StrEnum):
    """Phase of an experiment."""

    __test__ = False  # pytest would collect a class of this name

    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


LIVE = frozenset({TestStatus.SCHEDULED, TestStatus.RUNNING, TestStatus.PAUSED, TestStatus.ROLLING_BACK})


class Decision(StrEnum):
    """What a test concluded."""

    PROMOTE_B = "promote_b"
    KEEP_A = "keep_a"
    ROLLBACK = "rollback"
    INCONCLUSIVE = "inconclusive"


class AlertLevel(StrEnum):
    """The four levels of the alert contract, mildest first."""

    INFO = "INFO"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    EMERGENCY = "EMERGENCY"


def unix_ms(text: str) -> int:
    """Unix milliseconds of a time stamp that `rfc3339` wrote. Raises ValueError for anything else."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def rfc3339(unix_ms: int) -> str:
    """UTC time stamp such as ``2025-01-01T12:00:00.000Z``."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
