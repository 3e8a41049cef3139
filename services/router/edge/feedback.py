"""Takes feedback on assigned requests: checks the token, and answers only once METRICS holds what was said."""

import random
import time
from dataclasses import replace

from schemas.v1.control import FeedbackCommand
from services.router.adapters.facts import FactPublisher
from services.router.domain import feedback_token
from services.router.domain.assignment import partition_of
from services.router.domain.feedback import feedback_of
from services.router.domain.feedback_token import BadToken
from services.router.domain.refusals import BadRequest, Conflict, Unavailable
from services.router.ports import Erasures, Experiments

STORED_WITHIN_S = 3.0


class FeedbackDesk:
    """One for each router; it keeps nothing itself."""

    def __init__(
        self, signing_key: bytes, experiments: Experiments, facts: FactPublisher, erasures: Erasures
    ) -> None:
        self._signing_key = signing_key
        self._experiments = experiments
        self._facts = facts
        self._erasures = erasures

    async def take(self, said: FeedbackCommand) -> str:
        """Record what was said; the test's id.

        Raises BadRequest for a token that is forged or expired, Unprocessable when nothing was said, Conflict when the
        test has ended, Unavailable when METRICS did not confirm in time (sent again, it counts once all the same).
        """
        try:
            token = feedback_token.verify(self._signing_key, said.token, time.time())
        except BadToken as exc:
            raise BadRequest(f"token: {exc}", param="token", code="invalid_token") from None
        if token.unit in self._erasures.of(token.test):
            token = replace(token, unit=random.getrandbits(64), sticky=False)
        feedback = feedback_of(token, score=said.score, thumbs=said.thumbs, converted=said.converted)
        test = self._experiments.by_id(token.test)
        if test is None or not test.assigning:
            raise Conflict(
                f"test '{token.test}' has ended: what is said about it now could change nothing any more and is not "
                "recorded",
                param="token", code="test_ended",
            )  # fmt: skip
        if not await self._facts.record(partition_of(token.unit), feedback, STORED_WITHIN_S):
            raise Unavailable(
                "the feedback could not be stored in time: send it again, it counts once", retry_after_s=1
            )
        return token.test
