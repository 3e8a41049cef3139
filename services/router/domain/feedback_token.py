"""Feedback tokens: what a client may later say about one assigned request, and nothing else.

``base64url(payload) . base64url(MAC)``, payload = test, variant, unit hash, request, expiry, applied share, and 1 where
the unit is more than this request. The MAC is keyed BLAKE2b of 128 bits (RFC 7693), which is made for this and costs a
fraction of HMAC through OpenSSL.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass

TTL_S = 7 * 86_400
_MAC = 16
_MAX = 512


class BadToken(ValueError):  # noqa: N818 - an answer to the caller, not a failure of ours
    """A token that this system did not make, or not for so long; the message says which."""


@dataclass(frozen=True, slots=True)
class FeedbackToken:
    """What a token stands for; ``unit`` is the 64-bit unit hash, ``expires_s`` Unix seconds.

    ``share_bp`` is the canary's share when the request was admitted; ``sticky`` is false for a unit of one request.
    """

    test: str
    variant: str
    unit: int
    request: str
    expires_s: int
    share_bp: int = 0
    sticky: bool = True


def sign(key: bytes, token: FeedbackToken) -> str:
    """The token as text that fits a header."""
    unit = f"{token.unit:016x}|{token.request}|{token.expires_s}|{token.share_bp}|{token.sticky:d}"
    payload = f"{token.test}|{token.variant}|{unit}".encode()
    return f"{_text(payload)}.{_text(_mac(key, payload))}"


def verify(key: bytes, text: str, now_s: float) -> FeedbackToken:
    """What the token stands for. Raises BadToken when it is forged, malformed or expired."""
    head, dot, tail = text.partition(".")
    if not dot or len(text) > _MAX:
        raise BadToken("not a feedback token: send X-AB-Feedback-Token of a response as it was")
    try:
        payload, mac = _bytes(head), _bytes(tail)
    except (binascii.Error, ValueError):
        raise BadToken("not a feedback token: send X-AB-Feedback-Token of a response as it was") from None
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise BadToken("the feedback token's signature is wrong: send X-AB-Feedback-Token of a response as it was")
    test, variant, unit, request, expires, share_bp, sticky = payload.decode().split("|")
    if int(expires) < now_s:
        raise BadToken("the feedback token has expired: feedback is taken for seven days")
    return FeedbackToken(test, variant, int(unit, 16), request, int(expires), int(share_bp), sticky == "1")


def _mac(key: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_MAC, key=key[:64], person=b"cypria-feedback").digest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
