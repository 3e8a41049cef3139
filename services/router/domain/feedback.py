"""What a client says about one response, as the fact that travels."""

import hashlib

from services.router.domain.facts import Feedback
from services.router.domain.feedback_token import FeedbackToken
from services.router.domain.refusals import Unprocessable


def feedback_of(token: FeedbackToken, *, score: float | None, thumbs: str | None, converted: bool | None) -> Feedback:
    """The fact; the token's own id only as a hash. Raises Unprocessable when nothing is said."""
    if score is None and thumbs is None and converted is None:
        raise Unprocessable(
            "nothing is said about the response: give at least one of score (1 to 5), thumbs (up or down) and "
            "converted (true or false)",
            param="score", code="missing_field",
        )  # fmt: skip
    return Feedback(
        test=token.test,
        variant=token.variant,
        share_bp=token.share_bp,
        unit=f"{token.unit:016x}",
        id=hashlib.blake2b(token.request.encode(), digest_size=8).hexdigest(),
        expires_s=token.expires_s,
        sticky=token.sticky,
        thumbs_up=None if thumbs is None else thumbs == "up",
        converted=converted,
        score_micro=None if score is None else round(score * 1e6),
    )
