"""What a status of an HTTP channel means for a delivery."""

from collections.abc import Mapping

from services.alerts.domain.outcome import Outcome, Refused, Retry, Sent
from services.alerts.domain.peer import Peer, http_words

PERMANENT = frozenset({400, 401, 403, 404, 405, 410, 413, 414, 415, 422})
"""The payload, the address or the credentials are wrong for good."""


def outcome_of(status: int, headers: Mapping[str, str], peer: Peer, why: str = "") -> Outcome:
    """2xx is sent; PERMANENT is refused; everything else may work later. ``why`` is the channel's own word."""
    if 200 <= status < 300:
        return Sent()
    reason = http_words(status, peer, why)
    return Refused(reason) if status in PERMANENT else Retry(reason, retry_after(headers))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the channel asked for; 0 where it said nothing or a date."""
    try:
        return max(0.0, float({k.lower(): v for k, v in headers.items()}.get("retry-after", "0")))
    except ValueError:
        return 0.0
