"""One text being generated, token by token, and when it ends."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from services.inference.domain.formats import TokenLogprob
from services.inference.domain.generation import Params
from services.inference.domain.text import Decode, Detokenizer, StopMatcher


@dataclass(slots=True)
class Delta:
    """What one step adds: certain text, and at the end why. ``tokens`` counts those generated so far."""

    text: str = ""
    finish: str | None = None
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    error: str | None = None
    compute_s: float = 0.0

    @property
    def last(self) -> bool:
        """Nothing follows."""
        return self.finish is not None or self.error is not None


class Sequence:
    """The state of one generation. ``limit``: the most tokens that it may produce."""

    __slots__ = (
        "_detokenizer", "_eos", "_pending", "_stops", "cancelled", "compute_s", "limit", "params", "prompt", "tokens",
    )  # fmt: skip

    def __init__(self, prompt: list[int], params: Params, limit: int, eos: Items[int], decode: Decode) -> None:
        self.prompt = prompt
        self.params = params
        self.limit = limit
        self.tokens = 0
        self.cancelled = False
        self.compute_s = 0.0
        self._eos = frozenset() if params.ignore_eos else frozenset(eos)
        self._detokenizer = Detokenizer(decode)
        self._stops = StopMatcher(params.stop)
        self._pending: list[TokenLogprob] = []

    def push(self, token: int, logprob: TokenLogprob | None = None) -> Delta | None:
        """Take in the next token; what can be told of it, or None while it is held back."""
        self.tokens += 1
        if token in self._eos:
            return self._end("stop", self._detokenizer.flush())
        if logprob is not None:
            self._pending.append(logprob)
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.stopped:
            return self._delta(text, "stop")
        if self.tokens >= self.limit:
            return self._end("length", self._detokenizer.flush(), before=text)
        return self._delta(text, None) if text else None

    def fail(self, reason: str) -> Delta:
        """End with an error."""
        return Delta(error=reason, tokens=self.tokens, compute_s=self.compute_s)

    def _end(self, finish: str, held: str, before: str = "") -> Delta:
        text = before + self._stops.push(held)
        if self._stops.stopped:
            return self._delta(text, "stop")
        return self._delta(text + self._stops.flush(), finish)

    def _delta(self, text: str, finish: str | None) -> Delta:
        logprobs, self._pending = self._pending, []
        return Delta(text, finish, self.tokens, logprobs, compute_s=self.compute_s)
