"""What handlers answer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Done:
    """A reply's body (a model or plain JSON), and the test or model it concerned (for the audit)."""

    body: Any
    test_id: str | None = None
    target: str | None = None
