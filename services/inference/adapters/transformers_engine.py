"""Small models on the CPU through torch, with OpenAI's replies."""

import asyncio
import importlib.metadata
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from services._runtime.clock import monotonic, now_ms
from services._runtime.settings_engines import Model
from services._runtime.telemetry import get_logger
from services.inference.adapters.engine import (
    EngineError,
    EngineHead,
    EngineHealth,
    EngineRequest,
    OnProgress,
    Pieces,
    Report,
    ignore_progress,
)
from services.inference.adapters.torch_loop import EmbeddingError, TorchLoop
from services.inference.domain import formats, generation
from services.inference.domain.generation import ChatBody, CompletionBody, EmbeddingBody, Params
from services.inference.domain.requests import BadRequestError
from services.inference.domain.sequence import Delta, Sequence

log = get_logger(__name__)

Deltas = AsyncGenerator[tuple[int, Delta], None]

_KNOWN_ARGS = {"num_threads", "dtype", "max_batch_size", "max_model_len", "temperature"}
_DEFAULT_BATCH = 32


class TransformersEngine:
    """``engine_args``: num_threads (1), dtype (float32), max_batch_size (32, at most max_concurrency),
    max_model_len (the model's own), temperature (of requests that name none; the model's own, else 1).
    """

    name = "transformers"

    def __init__(self, model: Model) -> None:
        args = model.engine_args
        if unknown := set(args) - _KNOWN_ARGS:
            raise ValueError(
                f"engine_args.{min(unknown)}: engine transformers has no such argument; "
                f"it has {', '.join(sorted(_KNOWN_ARGS))}"
            )
        self._served = model.name
        self._max_len = int(args.get("max_model_len", 0))
        self._temperature = args.get("temperature")
        self._eos: list[int] = []
        self._longest_token = 1
        self._path = model.path or Path()
        self._loop = TorchLoop(
            self._path, dtype=str(args.get("dtype", "float32")), threads=int(args.get("num_threads", 1)),
            batch_size=min(
                model.batch_size or int(args.get("max_batch_size", _DEFAULT_BATCH)), model.max_concurrency
            ), name=model.name,
        )  # fmt: skip
        self._closed = True

    async def load(self, progress: OnProgress = ignore_progress) -> None:
        """Load tokenizer and weights. Raises what transformers raises."""
        progress("weights", -1.0)
        await self._loop.start()
        config, tokenizer = self._loop.model.config, self._loop.tokenizer
        longest = int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)
        self._max_len = min(self._max_len, longest) if self._max_len else longest
        defaults = self._loop.model.generation_config
        eos = defaults.eos_token_id if defaults.eos_token_id is not None else tokenizer.eos_token_id
        self._eos = [eos] if isinstance(eos, int) else list(eos or [])
        if self._temperature is None:
            self._temperature = defaults.temperature if defaults.temperature is not None else 1.0
        self._longest_token = max(len(token) for token in tokenizer.get_vocab())
        self._closed = False

    async def warm(self) -> None:
        """Generate two tokens, so that what torch does once is done.

        A model that fails at it is served all the same: its requests fail, and who watches it decides.
        """
        sequence = self._sequence([self._eos[0] if self._eos else 0], Params(max_tokens=2, temperature=0.0))
        try:
            async with aclosing(self._run([sequence], Report(), monotonic())) as deltas:
                async for _ in deltas:
                    pass
        except EngineError as exc:
            log.warning("warm_up_failed", model=self._served, error=exc.message)

    async def close(self) -> None:
        """End the thread and free the weights."""
        self._closed = True
        await self._loop.stop()

    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return self._loop.memory_bytes()

    @property
    def running(self) -> int:
        """Sequences that are being generated or wait for it."""
        return self._loop.running

    def dead(self) -> str | None:
        """See Engine."""
        return self._loop.error

    def health(self) -> EngineHealth:
        """Sequences in the batch and before it."""
        return EngineHealth(running=self._loop.running, thread=self._loop.thread)

    @property
    def version(self) -> str:
        """The library's."""
        return f"transformers {importlib.metadata.version('transformers')}"

    async def generate(self, request: EngineRequest) -> Pieces:
        """See Engine."""
        if self._closed or not self._loop.alive:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        began = monotonic()
        if request.route == "embeddings":
            vectors = await self._embeddings(generation.parse(request.body, EmbeddingBody))
            yield EngineHead()
            yield vectors
            return
        chat = request.route == "chat"
        body = generation.parse(request.body, ChatBody) if chat else generation.parse(request.body, CompletionBody)
        sequences, prompt_tokens = await self._sequences(body)
        reply = formats.Reply(
            chat=chat, reply_id=f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}", model=self._served,
            created=now_ms() // 1000,
        )  # fmt: skip
        written = self._streamed if request.stream else self._whole
        try:
            async with (
                aclosing(self._run(sequences, request.report, began)) as deltas,
                aclosing(written(reply, sequences, deltas, prompt_tokens)) as pieces,
            ):
                async for piece in pieces:
                    yield piece
        finally:
            request.report.gpu_us = round(sum(sequence.compute_s for sequence in sequences) * 1e6)

    @staticmethod
    async def _streamed(reply: formats.Reply, sequences: list[Sequence], deltas: Deltas, prompt_tokens: int) -> Pieces:
        opened: set[int] = set()
        async for index, delta in deltas:
            if not opened:
                yield EngineHead(content_type="text/event-stream; charset=utf-8")
            logprobs = delta.logprobs if sequences[index].params.logprobs >= 0 else None
            event = reply.delta(index, delta.text, delta.finish, logprobs)
            if index not in opened:
                opened.add(index)
                event = reply.opening(index) + event
            yield event
        yield reply.usage(prompt_tokens, sum(sequence.tokens for sequence in sequences)) + formats.DONE

    @staticmethod
    async def _whole(reply: formats.Reply, sequences: list[Sequence], deltas: Deltas, prompt_tokens: int) -> Pieces:
        texts: list[list[str]] = [[] for _ in sequences]
        finishes = ["stop"] * len(sequences)
        logprobs: list[list[formats.TokenLogprob] | None] = [
            [] if sequence.params.logprobs >= 0 else None for sequence in sequences
        ]
        async for index, delta in deltas:
            texts[index].append(delta.text)
            if (told := logprobs[index]) is not None:
                told += delta.logprobs
            finishes[index] = delta.finish or "stop"
        choices = [
            reply.choice(index, "".join(texts[index]), finishes[index], told) for index, told in enumerate(logprobs)
        ]
        yield EngineHead()
        yield reply.whole(choices, prompt_tokens, sum(sequence.tokens for sequence in sequences))

    async def _run(self, sequences: list[Sequence], report: Report, began: float) -> Deltas:
        """The deltas of all sequences as they come. Closing it cancels those that still run. Raises EngineError."""
        arrived: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()

        def sink(index: int) -> Any:
            return lambda delta: arrived.put_nowait((index, delta))

        left = set(range(len(sequences)))
        try:
            for index, sequence in enumerate(sequences):
                self._loop.submit(sequence, sink(index))
            while left:
                index, delta = await arrived.get()
                if delta.last:
                    left.discard(index)
                if delta.error is not None:
                    raise EngineError(500, delta.error, kind="engine_error")
                if delta.text and report.first_token_s < 0:
                    report.first_token_s = monotonic() - began
                yield index, delta
        finally:
            for index in left:
                self._loop.cancel(sequences[index])

    async def _sequences(self, body: ChatBody | CompletionBody) -> tuple[list[Sequence], int]:
        """(one sequence for each choice, all prompt tokens). Raises BadRequestError."""
        temperature = float(self._temperature if self._temperature is not None else 1.0)
        params = generation.params(body, temperature=temperature, seed=secrets.randbits(48))
        if any(not 0 <= token < len(self._loop.tokenizer) for token in params.bias):
            raise BadRequestError("'logit_bias' has token ids that are not in the vocabulary", "logit_bias")
        prompts = await asyncio.to_thread(self._prompts, body)
        choices = body.n or 1
        wanted = 0 if body.max_tokens is None and isinstance(body, CompletionBody) else params.max_tokens
        sequences = []
        for prompt in prompts:
            self._check_room(len(prompt), wanted)
            for choice in range(choices):
                each = params if choice == 0 else _with_seed(params, params.seed + choice)
                sequences.append(self._sequence(prompt, each))
        return sequences, sum(len(prompt) for prompt in prompts)

    def _sequence(self, prompt: list[int], params: Params) -> Sequence:
        tokenizer = self._loop.tokenizer
        room = self._max_len - len(prompt)
        limit = min(params.max_tokens, room) if params.max_tokens else room
        return Sequence(prompt, params, limit, self._eos, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def _prompts(self, body: ChatBody | CompletionBody) -> list[list[int]]:
        if isinstance(body, CompletionBody):
            return [self._encode(item, "prompt") for item in generation.inputs(body.prompt, "prompt")]
        tokenizer = self._loop.tokenizer
        messages = generation.conversation(body)
        self._check_size(sum(len(message["content"]) for message in messages), "messages")
        if tokenizer.chat_template is None:
            text = "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "
            return [self._encode(text, "messages")]
        try:
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as exc:
            # Templates refuse roles and orders with errors of their own; the caller can mend them.
            raise BadRequestError(f"the model's chat template refuses these messages: {exc}", "messages") from exc
        return [list(tokenizer.encode(text, add_special_tokens=False))]

    def _encode(self, item: str | list[int], param: str) -> list[int]:
        tokenizer = self._loop.tokenizer
        if isinstance(item, str):
            self._check_size(len(item), param)
            ids = list(tokenizer.encode(item))
        else:
            ids = item
            size = len(tokenizer)
            if any(not 0 <= token < size for token in ids):
                raise BadRequestError(f"'{param}' has token ids that are not in the vocabulary of {size}", param)
        if not ids:
            raise BadRequestError(f"'{param}' must not be empty", param)
        return ids

    def _check_size(self, characters: int, param: str) -> None:
        """Refuse a text that cannot fit however it is tokenized, before time is spent on it."""
        if characters > self._max_len * self._longest_token:
            raise BadRequestError(
                f"This model's maximum context length is {self._max_len} tokens. However, '{param}' has "
                f"{characters} characters. Please shorten it.", param, "context_length_exceeded",
            )  # fmt: skip

    def _check_room(self, prompt: int, wanted: int) -> None:
        if prompt + max(wanted, 1) > self._max_len:
            raise BadRequestError(
                f"This model's maximum context length is {self._max_len} tokens. However, you requested "
                f"{prompt + wanted} tokens ({prompt} in the prompt, {wanted} in the completion). Please reduce the "
                "length of the prompt or completion.", None, "context_length_exceeded",
            )  # fmt: skip

    async def _embeddings(self, body: EmbeddingBody) -> bytes:
        if body.encoding_format not in {None, "float", "base64"}:
            raise BadRequestError("'encoding_format' must be float or base64", "encoding_format")
        if body.dimensions is not None:
            raise BadRequestError("'dimensions' cannot be chosen for this model: leave it out", "dimensions")
        inputs = generation.inputs(body.input, "input")
        prompts = await asyncio.to_thread(lambda: [self._encode(item, "input") for item in inputs])
        for prompt in prompts:
            self._check_room(len(prompt), 0)
        try:
            # One call each, so that those who are being answered wait for no more than one prompt.
            vectors = [await self._loop.call(partial(self._loop.embed, prompt)) for prompt in prompts]
        except EmbeddingError as exc:
            raise EngineError(500, str(exc), kind="engine_error") from exc
        tokens = sum(len(prompt) for prompt in prompts)
        return formats.embeddings(vectors, self._served, tokens, as_base64=body.encoding_format == "base64")


def _with_seed(params: Params, seed: int) -> Params:
    return msgspec.structs.replace(params, seed=seed)
