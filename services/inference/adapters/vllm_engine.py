"""vLLM, in a process and an environment of its own (docs/decisions/0013)."""

import math
import secrets
from pathlib import Path

from services._runtime.clock import monotonic
from services._runtime.settings_engines import Model
from services._runtime.telemetry import get_logger
from services.inference.adapters import vllm_args, vllm_environment
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
from services.inference.adapters.vllm_process import HostProcess, Stream
from services.inference.domain import requests, vllm_limits
from services.inference.vllm_host import frames

log = get_logger(__name__)

_ROUTES = {"chat": frames.CHAT, "completions": frames.COMPLETIONS, "embeddings": frames.EMBEDDINGS}
_DEFAULT_SEQUENCES = 256
_CANCEL_S = 0.25
"""How long a request that is given up waits for the engine to say what it took up."""


class VllmEngine:
    """``engine_args`` are vLLM's arguments by their Python names, such as max_model_len; `vllm_args` says which.

    ``adapter`` is a directory with a LoRA adapter, which all requests use.
    """

    name = "vllm"

    def __init__(
        self, model: Model, *, python: Path | None = None, remote_code: bool = False, join_s: float = 0.0
    ) -> None:
        path = model.path or Path()
        self._python = vllm_environment.interpreter(python)
        sequences = model.batch_size or min(model.max_concurrency, _DEFAULT_SEQUENCES)
        self._start = frames.Start(
            path=str(path),
            name=model.name,
            args=vllm_args.checked(model.engine_args, path, remote_code=remote_code),
            defaults=vllm_args.defaults(max_num_seqs=sequences),
            join_s=join_s,
        )
        given = self._start.args.get("max_num_seqs")
        self._sequences = given if isinstance(given, int) else sequences
        if model.adapter is not None:
            self._start.lora = str(model.adapter)
            self._start.base = f"base-{secrets.token_hex(8)}"  # nobody asks for the model without its adapter
        self._name = model.name
        self._host: HostProcess | None = None

    async def load(self, progress: OnProgress = ignore_progress) -> None:
        """Start the host and load. Raises LoadError with vLLM's own reason; cancelled, all processes are gone."""
        progress("starting", -1.0)
        host = self._host = HostProcess(self._python, self._name)
        try:
            ready = await host.load(self._start, progress)
        except BaseException:
            await self.close()
            raise
        log.info("vllm_loaded", model=self._name, version=ready.version, devices=ready.devices, pids=host.pids)

    async def warm(self) -> None:
        """Generate two tokens, with logprobs, for which vLLM compiles something of its own.

        A model that fails at it is served all the same, as its requests tell.
        """
        assert self._host is not None
        if self._host.ready is not None and self._host.ready.generates:
            route, body = "completions", {"model": self._name, "prompt": "a", "max_tokens": 2, "logprobs": 1}
        else:
            route, body = "embeddings", {"model": self._name, "input": "a"}
        raw = frames.encode(body)
        request = EngineRequest(route, raw, requests.read(raw))
        try:
            async for piece in self.generate(request):
                if isinstance(piece, EngineHead) and piece.status != 200:
                    log.warning("warm_up_failed", model=self._name, status=piece.status)
        except EngineError as exc:
            log.warning("warm_up_failed", model=self._name, error=exc.message)

    async def close(self) -> None:
        """End all its processes, which gives their memory back."""
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    def memory_bytes(self) -> int:
        """Of all its processes: weights, KV cache and vLLM itself."""
        return self._host.memory_bytes if self._host is not None else 0

    def dead(self) -> str | None:
        """See Engine."""
        return self._host.dead if self._host is not None else None

    def health(self) -> EngineHealth:
        """As vLLM's scheduler tells it."""
        host = self._host
        if host is None:
            return EngineHealth()
        health = host.health
        return EngineHealth(health.running, health.waiting, health.kv_cache, host.pids, host.silent_s)

    @property
    def version(self) -> str:
        """VLLM's."""
        ready = self._host.ready if self._host is not None else None
        return f"vllm {ready.version}" if ready is not None else ""

    async def generate(self, request: EngineRequest) -> Pieces:
        """See Engine."""
        began = monotonic()
        host = self._host
        if host is None:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        route = _ROUTES.get(request.route)
        if route is None:
            raise EngineError(404, f"no route '{request.route}'", kind="invalid_request_error")
        if host.ready is not None and not (host.ready.embeds if route == frames.EMBEDDINGS else host.ready.generates):
            made = "embeddings" if route == frames.EMBEDDINGS else "text"
            raise EngineError(
                400, f"model '{self._name}' makes no {made}: its engine_args.runner and convert say what it is for",
                kind="invalid_request_error", param="model",
            )  # fmt: skip
        vllm_limits.check(request.body, sequences=self._sequences)
        body = requests.for_upstream(request.body, request.wants, self._name, ask_usage=request.stream)
        stream = await host.open(route, body)
        try:
            while stream.head is None:
                if stream.ended:
                    raise _unanswered(stream)
                await stream.change()
            head = stream.head
            yield EngineHead(head.status, head.content_type, _seconds(head.retry_after))
            while True:
                if stream.pieces:
                    piece = stream.take()
                    yield piece
                    host.took(stream, len(piece))
                elif stream.ended:
                    break
                else:
                    await stream.change()
            if stream.error is not None:
                raise stream.error
        finally:
            await host.leave(stream, _CANCEL_S)
            _report(request.report, stream, began)


def _unanswered(stream: Stream) -> EngineError:
    return stream.error or EngineError(502, "the engine gave no answer", kind="engine_error")


def _report(report: Report, stream: Stream, began: float) -> None:
    stats = stream.stats
    if stats is None:
        return
    report.queue_s = stats.queue_s
    if stats.first_token_at >= 0:
        report.first_token_s = max(0.0, stats.first_token_at - began)
    report.gpu_us = round(stats.device_s * 1e6)
    report.prompt_tokens = stats.prompt_tokens
    report.completion_tokens = stats.completion_tokens
    report.cached_tokens = stats.cached_tokens


def _seconds(retry_after: str) -> int:
    try:
        return max(0, math.ceil(float(retry_after)))
    except ValueError:
        return 0
