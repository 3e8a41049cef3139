"""What the router answers instead of doing it: one exception with the status and the four parts of an error."""

from typing import Any


class Refused(Exception):  # noqa: N818 - an answer, not a failure of ours
    """A command or request that is not carried out; the message names the field and the remedy.

    ``status`` is the HTTP status, ``param`` the field at fault, ``retry_after_s`` goes into `Retry-After`.
    ``before`` is what the audit shows of what a command found and left as it was, where that is known.
    """

    before: dict[str, Any] | None = None
    status = 400
    error_type = "invalid_request_error"
    code = "bad_request"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        return error_body(self.message, self.error_type, self.param, self.code)

    def headers(self) -> dict[str, str]:
        """Headers that belong to the refusal."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def error_body(message: str, error_type: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The one shape of every error."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


class BadRequest(Refused):
    """400: what was sent makes no sense."""


class Unauthenticated(Refused):
    """401: no key, or one that nobody has."""

    status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        """Names the scheme, as RFC 9110 asks of a 401."""
        return {"WWW-Authenticate": 'Bearer realm="cypria"', **super().headers()}


class Forbidden(Refused):
    """403: a good key whose role is too small."""

    status = 403
    error_type = "permission_error"
    code = "insufficient_role"


class NotFound(Refused):
    """404: no such thing, or nothing running."""

    status = 404
    error_type = "not_found_error"
    code = "not_found"


class Gone(Refused):
    """410: it was there and is not kept any more."""

    status = 410
    error_type = "not_found_error"
    code = "gone"


class MethodNotAllowed(Refused):
    """405."""

    status = 405
    code = "method_not_allowed"


class Conflict(Refused):
    """409: it does not fit the present state."""

    status = 409
    error_type = "conflict_error"
    code = "conflict"


class RequestTimeout(Refused):
    """408."""

    status = 408
    error_type = "timeout_error"
    code = "request_timeout"


class HeadTooLarge(Refused):
    """431."""

    status = 431
    code = "headers_too_large"


class TooLarge(Refused):
    """413: the body is over the limit."""

    status = 413
    code = "body_too_large"


class UnsupportedMedia(Refused):
    """415: the body is in a form that is not taken."""

    status = 415
    code = "unsupported_content_encoding"


class Unprocessable(Refused):
    """422: a value out of range, of another type, or a field that nobody knows."""

    status = 422
    code = "invalid_value"


class TooMany(Refused):
    """429: over the rate limit."""

    status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(Refused):
    """503: a part that is needed does not answer now."""

    status = 503
    error_type = "service_unavailable_error"
    code = "unavailable"


class UnsupportedVersion(Refused):
    """505: another version of HTTP, or none."""

    status = 505
    code = "http_version_not_supported"


class UpstreamTimeout(Refused):
    """504: a part that is needed took too long."""

    status = 504
    error_type = "timeout_error"
    code = "timeout"
