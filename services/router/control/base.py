"""What handlers answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Done:
    """A reply's body (a model or plain JSON; bytes go out as they are), and what it concerned (for the audit).

    ``media`` is the body's type, ``headers`` what else belongs to it.
    """

    body: Any
    test_id: str | None = None
    target: str | None = None
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
