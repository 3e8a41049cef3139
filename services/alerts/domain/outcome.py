"""What became of one attempt to deliver. Reasons hold no secrets: of an address host and port."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sent:
    """The destination has it; ``note`` is what was not perfect."""

    note: str = ""


@dataclass(frozen=True)
class Retry:
    """It may work later; ``after_s`` is what the destination asked for."""

    reason: str
    after_s: float = 0.0


@dataclass(frozen=True)
class Refused:
    """It will not work however often it is tried."""

    reason: str


Outcome = Sent | Retry | Refused


@dataclass(frozen=True)
class Later:
    """No attempt was made: it is to come again in so many seconds, to this replica or another one."""

    seconds: float
