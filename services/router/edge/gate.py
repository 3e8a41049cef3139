"""Who may come in, and what a body amounts to. Shared by HTTP and the bus."""

import ipaddress
import itertools
import os
import time
from collections.abc import Callable, Sequence

from services._runtime.clock import monotonic
from services.router.domain import feedback_token
from services.router.domain.auth import Principal
from services.router.domain.call import Call
from services.router.domain.door import Door
from services.router.domain.feedback_token import FeedbackToken
from services.router.domain.ratelimit import RateLimiter
from services.router.domain.refusals import BadRequest, Forbidden, NotFound, TooLarge, TooMany
from services.router.domain.request import read, request_id
from services.router.edge.arms import Arms
from services.router.edge.meters import Meters
from services.router.edge.serve import Server
from services.router.ports import ModelInfo

MAX_SHOWN = 200
"""Characters of a caller's own text that an error repeats."""


class Gate:
    """Keys, roles, addresses and rates; bodies and the arms they go to."""

    def __init__(
        self, *, door: Door, limiter: RateLimiter, arms: Arms, server: Server, meters: Meters, signing_key: bytes,
        max_body: int, default_model: str | None, ip_allow: Sequence[str], unit_sources: Sequence[str],
        models: Callable[[], list[ModelInfo]], first_use: Callable[[Principal, str], None],
    ) -> None:  # fmt: skip
        self._door = door
        self.server = server
        self.meters = meters
        self.max_body = max_body
        self.models = models
        self._arms = arms
        self._limiter = limiter
        self._first_use = first_use
        self._signing_key = signing_key
        self._default_model = default_model
        self._networks = [ipaddress.ip_network(net, strict=False) for net in ip_allow]
        self._with_key = "api_key" in unit_sources
        self._with_address = "client_address" in unit_sources

    def address(self, host: str) -> None:
        """Raises Forbidden when `security.ip_allow` leaves the address out."""
        if not self._networks:
            return
        known = ipaddress.ip_address(host) if host else None
        if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped:
            known = known.ipv4_mapped  # how a socket for both families names an IPv4 client
        if known is None or not any(known in net for net in self._networks):
            raise Forbidden("this address is not allowed: have security.ip_allow name it", code="address_not_allowed")

    def enter(self, authorization: str | None, host: str) -> Principal:
        """Who comes from ``host``; every role may. Raises Unauthenticated or TooMany."""
        now = monotonic()
        principal = self._door.enter(authorization, host, now, self._first_use)
        wait = self._limiter.take(principal.name, now, principal.requests_per_minute)
        if wait is not None:
            raise TooMany("over the inference limit of this key: slow down", retry_after_s=wait)
        return principal

    def call(
        self, *, route: str, body: bytes, principal: Principal, units: dict[str, bytes], own_id: bytes | None,
        host: str, traceparent: str = "",
    ) -> Call:  # fmt: skip
        """The request, assigned to its arm. Raises BadRequest and NotFound."""
        now = monotonic()
        peek = read(body)
        model = peek.model or (self._default_model if route == "generate" else None)
        if not model:
            raise BadRequest("'model' is missing: name one of GET /v1/models", param="model", code="missing_model")
        if not self.server.known(model):
            raise NotFound(
                f"the model '{model[:MAX_SHOWN]}' does not exist: GET /v1/models lists those that do", param="model",
                code="model_not_found",
            )  # fmt: skip
        if peek.user:
            units["user"] = peek.user.encode("utf-8", "surrogatepass")
        if peek.prompt_cache_key:
            units["prompt_cache_key"] = peek.prompt_cache_key.encode("utf-8", "surrogatepass")
        if self._with_key:
            units["api_key"] = principal.name.encode()
        if self._with_address:
            units["client_address"] = host.encode()
        given = request_id(own_id)
        call = Call(
            request_id=given or new_id(), own_id=given is not None, traceparent=traceparent, route=route, body=body,
            model=model, stream=bool(peek.stream), caller=principal.name + self._arms.member(units), units=units,
            started=now,
        )  # fmt: skip
        self._arms.admit(call, now)
        if call.test:
            expires = int(time.time()) + feedback_token.TTL_S
            token = FeedbackToken(
                call.test, call.variant, call.unit, new_id(), expires, call.share_bp, call.sticky
            )
            call.token = feedback_token.sign(self._signing_key, token)
        return call


_PREFIX = os.urandom(8).hex()
_NUMBERS = itertools.count(1)


def new_id() -> str:
    """A request id for a caller that brought none: unique, and without a system call for each."""
    return f"req_{_PREFIX}{next(_NUMBERS):08x}"


def common_headers(call: Call) -> dict[str, str]:
    """Headers of every answer to an admitted request."""
    if not call.test:
        return {"X-Request-ID": call.id}
    return {
        "X-Request-ID": call.id,
        "X-AB-Test-ID": call.test,
        "X-AB-Test-Variant": call.variant,
        "X-AB-Feedback-Token": call.token,
    }


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit."""
    return TooLarge(f"the body is over {limit} bytes: send a smaller one")
