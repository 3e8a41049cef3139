"""An engine that answers, and that fails in every way that an engine can."""

import asyncio
import contextlib
import json

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import (
    EngineError,
    EngineHead,
    EngineHealth,
    EngineRequest,
    OnProgress,
    Pieces,
    ignore_progress,
)


class BadEngine:
    """``hang_load``: never ready; ``deaf``: hears the first cancellation and goes on; ``fail_loads``: raises that while
    loading; ``hang_close``: never closed; ``died`` and ``silent_s`` may be set at any moment.
    """

    name = "bad"

    def __init__(
        self, model: Model, *, hang_load: bool = False, deaf: bool = False, hang_close: bool = False,
        fail_load: Exception | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.hang_load = hang_load
        self.deaf = deaf
        self.hang_close = hang_close
        self.fail_load = fail_load
        self.died: str | None = None
        self.silent_s = 0.0
        self.closed = False
        self.released = asyncio.Event()
        self.progress: OnProgress = ignore_progress

    async def load(self, progress: OnProgress = ignore_progress) -> None:
        self.progress = progress
        progress("weights", 0.25)
        if self.fail_load is not None:
            raise self.fail_load
        if self.hang_load:
            with contextlib.suppress(asyncio.CancelledError) if self.deaf else contextlib.nullcontext():
                await self.released.wait()
            await self.released.wait()

    async def warm(self) -> None:
        return

    async def generate(self, request: EngineRequest) -> Pieces:
        if self.closed or self.died:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        yield EngineHead()
        yield json.dumps({"choices": [{"index": 0, "message": {"content": "well"}, "finish_reason": "stop"}]}).encode()

    async def close(self) -> None:
        self.closed = True
        if self.hang_close:
            await asyncio.Event().wait()
        self.released.set()

    def memory_bytes(self) -> int:
        return 0 if self.closed else 1 << 20

    def dead(self) -> str | None:
        return self.died

    def health(self) -> EngineHealth:
        return EngineHealth(running=1, waiting=2, kv_cache=0.5, silent_s=self.silent_s)

    @property
    def version(self) -> str:
        return "bad 1"
