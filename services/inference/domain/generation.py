"""What an engine of our own reads of the OpenAI bodies; fields that it has no use for are passed over."""

from typing import Annotated, Any, TypeVar

import msgspec

from services.inference.domain.requests import BadRequestError

_Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
_Probability = Annotated[float, msgspec.Meta(gt=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=128)]
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Bias = dict[int, Annotated[float, msgspec.Meta(ge=-100, le=100)]]
_TopLogprobs = Annotated[int, msgspec.Meta(ge=0, le=20)]
_Stops = str | list[str]

COMPLETION_MAX_TOKENS = 16
"""Tokens of a completion that names no limit, as in OpenAI's API; a chat may fill its context."""
_MAX_STOPS = 16
_MAX_PROMPTS = 128
_MAX_INPUTS = 2048


class _Sampling(msgspec.Struct):
    max_tokens: _Count | None = None
    temperature: _Temperature | None = None
    top_p: _Probability | None = None
    top_k: int | None = None
    n: _Choices | None = None
    seed: int | None = None
    stop: _Stops | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: _Bias | None = None
    ignore_eos: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatBody(_Sampling):
    """`/chat/completions`."""

    messages: list[Message] = []
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: _TopLogprobs | None = None
    tool_choice: str | dict[str, Any] | None = None


class CompletionBody(_Sampling):
    """`/completions`."""

    prompt: str | list[str | int | list[int]] = ""
    logprobs: _TopLogprobs | None = None
    echo: bool | None = None
    best_of: _Choices | None = None
    suffix: str | None = None


class EmbeddingBody(msgspec.Struct):
    """`/embeddings`."""

    input: str | list[str | int | list[int]] = ""
    encoding_format: str | None = None
    dimensions: int | None = None


class Params(msgspec.Struct, frozen=True):
    """How to generate one sequence. ``logprobs``: alternatives to report for each token, -1 for none at all.

    ``max_tokens`` 0 means as many as the context has room for; ``top_k`` 0 means all; ``bias`` is added to the
    logits of its tokens.
    """

    max_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: dict[int, float] = {}

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return bool(self.presence_penalty or self.frequency_penalty or self.bias)


B = TypeVar("B", bound=msgspec.Struct)


def parse(body: bytes, kind: type[B]) -> B:
    """``body`` as ``kind``. Raises BadRequestError naming the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        text = str(exc)
        reason, _, where = text.partition(" - at `$")
        param = where.strip("`.").split(".")[0].split("[")[0] or None
        raise BadRequestError(f"{param or 'the body'}: {reason}", param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadRequestError(f"the body is not valid JSON: {exc}") from None


def params(body: ChatBody | CompletionBody, *, temperature: float, seed: int) -> Params:
    """The parameters that ``body`` asks for; ``temperature`` and ``seed`` stand in for what it leaves open.

    Raises BadRequestError for values that make no sense, and for wishes that this engine cannot fulfil.
    """
    _refuse_unsupported(body)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > _MAX_STOPS:
        raise BadRequestError(f"'stop' takes at most {_MAX_STOPS} strings", "stop")
    if isinstance(body, ChatBody):
        limit = body.max_completion_tokens or body.max_tokens or 0
        logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    else:
        limit = body.max_tokens or COMPLETION_MAX_TOKENS
        logprobs = -1 if body.logprobs is None else body.logprobs
    return Params(
        max_tokens=limit,
        temperature=temperature if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=seed if body.seed is None else body.seed,
        stop=stop,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        bias=body.logit_bias or {},
    )


def _refuse_unsupported(body: ChatBody | CompletionBody) -> None:
    """An answer that quietly ignored one of these would not be what was asked for."""
    if isinstance(body, ChatBody):
        if isinstance(body.tool_choice, dict) or body.tool_choice == "required":
            raise BadRequestError('\'tool_choice\': this engine calls no tools: send "auto" or "none"', "tool_choice")
    elif body.echo or body.suffix or (body.best_of or 1) > (body.n or 1):
        field = "echo" if body.echo else "suffix" if body.suffix else "best_of"
        raise BadRequestError(f"'{field}' is not supported by this engine: leave it out", field)


def conversation(body: ChatBody) -> list[dict[str, str]]:
    """The messages as a chat template takes them, text parts joined. Raises BadRequestError."""
    if not body.messages:
        raise BadRequestError("'messages' must have at least one message", "messages")
    return [{"role": message.role, "content": _content(message)} for message in body.messages]


def _content(message: Message) -> str:
    if isinstance(message.content, list):
        texts = []
        for part in message.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRequestError("this model takes only text: remove the other parts of 'content'", "messages")
            texts.append(part["text"])
        return "\n".join(texts)
    return message.content or ""


def inputs(value: str | list[str | int | list[int]], param: str) -> list[str | list[int]]:
    """The texts or token lists of a prompt or input: one text, several, one token list, or several.

    Raises BadRequestError for none, too many or a mixture.
    """
    if isinstance(value, str):
        return [value]
    if not value:
        raise BadRequestError(f"'{param}' must not be empty", param)
    tokens = [item for item in value if isinstance(item, int)]
    if len(tokens) == len(value):
        return [tokens]
    if tokens:
        raise BadRequestError(f"'{param}' mixes token ids with other things: send one kind", param)
    most = _MAX_INPUTS if param == "input" else _MAX_PROMPTS
    if len(value) > most:
        raise BadRequestError(f"'{param}' takes at most {most} entries", param)
    return [item for item in value if not isinstance(item, int)]
