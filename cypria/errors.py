"""What can go wrong between a program and Cypria: one class for each kind, and messages that say what to do."""

from typing import Any

LOOK = "check CYPRIA_URL, what stands between, and that the client and the edge are of one version"


class CypriaError(Exception):
    """Anything that this package raises of its own."""


class SettingsError(CypriaError, ValueError):
    """The client was given what cannot be used: an address, a key, a certificate. Nothing was sent."""


class ConnectionFailed(CypriaError, ConnectionError):
    """No answer. ``sent`` is False where the request surely was not sent, so that it can be repeated as it is; True
    where it may have been carried out.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class NoAnswerInTime(ConnectionFailed, TimeoutError):
    """Connected, and no answer within the client's ``timeout``."""


class NoVerdictYet(CypriaError, TimeoutError):
    """`wait_for_verdict` has waited long enough; the test goes on. ``status`` is the last one seen, if any."""

    def __init__(self, message: str, test_id: str, status: Any = None) -> None:
        super().__init__(message)
        self.test_id = test_id
        self.status = status


class ApiError(CypriaError, RuntimeError):
    """The edge answered, and did not do it: the message is its own, ``status`` HTTP's, ``param`` the field at fault.

    ``code`` names the reason for programs, ``type`` its family; ``retry_after`` (seconds, 0: none given) is when to ask
    again, ``request_id`` finds the request in logs and audit; ``body`` is the whole answer.
    """

    def __init__(
        self, status: int, message: str, retry_after: float = 0.0, body: Any = None, *, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.body = body
        self.request_id = request_id
        error = body.get("error") if isinstance(body, dict) else None
        known: dict[str, Any] = error if isinstance(error, dict) else {}
        self.param: str | None = known.get("param")
        self.code: str | None = known.get("code")
        self.type: str | None = known.get("type")


class InvalidRequest(ApiError):
    """It makes no sense as it is (400, 405, 413, 415, 422, 431): ``param`` names the field."""


class Unauthenticated(ApiError):
    """No key, or one that is wrong, expired or revoked (401): set CYPRIA_API_KEY."""


class PermissionDenied(ApiError):
    """The key's role does not reach, or its address is kept out (403)."""


class NotFound(ApiError):
    """No such test, model or key; or nothing runs (404). Of what was there and is kept no more: `Gone`."""


class Gone(NotFound):
    """It is not kept any more (410)."""


class Conflict(ApiError):
    """It does not fit the present state (409): a test runs on that model already, say."""


class RateLimited(ApiError):
    """Over the key's limit (429): ask again after ``retry_after`` seconds."""


class ServerUnavailable(ApiError):
    """Something inside does not answer now, or went wrong (500, 502, 503, 504)."""


class UnexpectedAnswer(ApiError):
    """Whatever answered is no Cypria, or one of another version."""


_KINDS: dict[int, type[ApiError]] = {
    401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 409: Conflict, 410: Gone, 429: RateLimited,
}  # fmt: skip


def of_status(status: int) -> type[ApiError]:
    """The class of a refusal with this HTTP status."""
    if status in _KINDS:
        return _KINDS[status]
    return ServerUnavailable if status >= 500 else InvalidRequest
