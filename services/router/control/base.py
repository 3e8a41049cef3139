"""What calls come in as, and what handlers answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
BUS = "bus"
"""``peer`` of what comes over the bus."""


@dataclass(frozen=True, slots=True)
class Done:
    """A reply's body (a model or plain JSON; bytes go out as they are), and what it concerned (for the audit).

    ``media`` is the body's type, ``headers`` what else belongs to it. ``before`` and ``after`` are what the audit shows
    of what was changed: small, and without secrets (`control.audited`).
    """

    body: Any
    test_id: str | None = None
    target: str | None = None
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it came in. ``peer`` is the caller's address, or 'bus'; it is only ever kept as a salted hash."""

    authorization: str | None
    request_id: str
    peer: str
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    path: Mapping[str, str] = field(default_factory=dict)
