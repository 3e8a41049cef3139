"""Signed webhooks: what a receiver checks is in docs/alerts.md."""

import hashlib
import hmac

TIMESTAMP = "Cypria-Timestamp"
SIGNATURE = "Cypria-Signature"
TOLERANCE_S = 300
"""Receivers refuse what is older, and keep the ids that they have seen for this long."""


def sign(secret: str, timestamp_s: int, event_id: str, body: bytes) -> str:
    """`v1=` and the hex HMAC-SHA256 of ``<timestamp>.<event id>.<body>``."""
    signed = f"{timestamp_s}.{event_id}.".encode() + body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def verify(secret: str, timestamp_s: int, event_id: str, body: bytes, signature: str, now_s: float) -> bool:
    """Whether a request is genuine and fresh; ids that were seen before are the receiver's to refuse."""
    fresh = abs(now_s - timestamp_s) <= TOLERANCE_S
    return hmac.compare_digest(sign(secret, timestamp_s, event_id, body), signature) and fresh
