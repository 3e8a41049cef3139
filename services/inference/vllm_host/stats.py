"""What vLLM tells of its engine and of each request, without a copy of its metrics for Prometheus."""

import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from .frames import Stats

CALL: ContextVar["CallStats"] = ContextVar("cypria_call")
"""The request that the present task works for."""

_HISTORY = 2048


class EngineStats:
    """The state of the engine cores, and the share of their time that each sequence gets.

    ``share`` is the integral of 1 / (sequences running) over the time in which any ran: the difference between two
    moments is what one sequence took up between them, and the shares of all add up to the time the engine worked.
    """

    def __init__(self) -> None:
        self.life_at = time.monotonic()
        """When an engine core last showed life."""
        self.devices = 1
        self._cores: dict[int, tuple[int, int, float]] = {}
        self._open = 0
        self._share = 0.0
        self._at = self.life_at
        self._history: deque[tuple[float, float]] = deque(maxlen=_HISTORY)

    def step(self, core: int, scheduler: Any) -> None:
        """An engine core has sent the outputs of a step, with its scheduler's state if it told that."""
        now = self.life_at = time.monotonic()
        self._advance(now)
        if scheduler is not None:
            waiting = scheduler.num_waiting_reqs + getattr(scheduler, "num_skipped_waiting_reqs", 0)
            self._cores[core] = (scheduler.num_running_reqs, waiting, scheduler.kv_cache_usage)
        self._history.append((now, self._share))

    def now(self) -> tuple[int, int, float]:
        """(running, waiting, share of the KV cache in use). A core that has nothing to do does not say so."""
        if not self._open:
            return 0, 0, 0.0
        cores = self._cores.values()
        running = sum(core[0] for core in cores)
        return running, sum(core[1] for core in cores), max((core[2] for core in cores), default=0.0)

    def _advance(self, now: float) -> float:
        if self._open:
            running = sum(core[0] for core in self._cores.values())
            self._share += (now - self._at) / (running or self._open)
        self._at = now
        return self._share

    def begin(self, sequences: int) -> float:
        """Sequences are handed to the engine; the share at this moment."""
        share = self._advance(time.monotonic())
        self._open += sequences
        return share

    def end(self, sequences: int) -> float:
        """They have ended; the share at this moment."""
        share = self._advance(time.monotonic())
        self._open -= sequences
        if not self._open:
            self._cores.clear()
        return share

    def share_at(self, moment: float, since: float) -> float:
        """The share at an earlier moment, at least ``since``."""
        for at, share in reversed(self._history):
            if at <= moment:
                return max(share, since)
        return since


class CallStats:
    """Collects the stats of one request, which may be several calls of the engine at once."""

    __slots__ = ("stats",)

    def __init__(self) -> None:
        self.stats = Stats()

    def first(self, metrics: Any) -> None:
        """The first output of a call has come."""
        stats = self.stats
        if metrics is None:
            return
        if metrics.scheduled_ts and metrics.queued_ts:
            stats.queue_s = max(stats.queue_s, metrics.scheduled_ts - metrics.queued_ts)
        if metrics.first_token_ts and not 0 <= stats.first_token_at <= metrics.first_token_ts:
            stats.first_token_at = metrics.first_token_ts

    def last(self, output: Any, written: int) -> None:
        """The last output of a call has come; the whole of it had ``written`` tokens."""
        stats = self.stats
        prompt = getattr(output, "prompt_token_ids", None)
        if prompt is not None:
            stats.prompt_tokens = max(stats.prompt_tokens, 0) + len(prompt)
        stats.completion_tokens = max(stats.completion_tokens, 0) + written
        cached = getattr(output, "num_cached_tokens", None)
        if cached is not None:
            stats.cached_tokens = max(stats.cached_tokens, 0) + cached


def watch(engine: Any, stats: EngineStats) -> None:
    """Have the engine's `generate` and `encode` report to ``stats`` and to the request they are called for."""
    engine.generate = _watched(engine.generate, stats)
    engine.encode = _watched(engine.encode, stats)


def _watched(method: Any, stats: EngineStats) -> Any:
    async def outputs(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        call = CALL.get(None)
        params = args[1] if len(args) > 1 else kwargs.get("sampling_params")  # None: it makes vectors
        sequences = getattr(params, "n", 1) or 1
        began = stats.begin(sequences)
        # Outputs hold what is new, or all so far; of the latter only the last one counts.
        new_only = getattr(getattr(params, "output_kind", None), "name", "") == "DELTA"
        output, written = None, 0
        try:
            async with contextlib.aclosing(method(*args, **kwargs)) as source:
                async for output_ in source:
                    if output is None:
                        metrics = getattr(output_, "metrics", None)
                        if call is not None:
                            call.first(metrics)
                        if metrics is not None and metrics.scheduled_ts > 0:
                            began = stats.share_at(metrics.scheduled_ts, began)
                    output = output_
                    if new_only:
                        for choice in output_.outputs:
                            written += len(choice.token_ids)
                    yield output_
        finally:
            share = stats.end(sequences) - began
            if call is not None and output is not None:
                if not new_only and isinstance(choices := getattr(output, "outputs", None), list):
                    written = sum(len(choice.token_ids) for choice in choices)
                call.stats.device_s += share * sequences * stats.devices
                call.last(output, written)

    return outputs
