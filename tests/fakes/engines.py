"""An engine that answers, and that fails in every way that an engine can."""

import asyncio
import contextlib
import json

from services._runtime.settings_engines import Model
from services.inference.adapters.engine import (
    Engine,
    EngineError,
    EngineHead,
    EngineHealth,
    EngineRequest,
    OnProgress,
    Pieces,
    ignore_progress,
)


class BadEngine:
    """``hang_load``: never ready; ``deaf``: hears the first cancellation and goes on; ``fail_load``: raised while loading;
    ``hang_close``: never closed; ``died`` and ``silent_s`` may be set at any moment. Otherwise it is as good as ``inner``,
    which answers; without one it says the same to everybody.
    """

    name = "bad"

    def __init__(
        self, model: Model, inner: Engine | None = None, *, hang_load: bool = False, deaf: bool = False,
        hang_close: bool = False, fail_load: Exception | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.inner = inner
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
        if self.inner is not None:
            await self.inner.load(progress)

    async def warm(self) -> None:
        if self.inner is not None:
            await self.inner.warm()

    async def generate(self, request: EngineRequest) -> Pieces:
        if self.closed or self.died:
            raise EngineError(503, "the engine is closed", retry_after=1, reset=True)
        if self.inner is None:
            yield EngineHead()
            yield json.dumps({"choices": [{"index": 0, "message": {"content": "well"}, "finish_reason": "stop"}]}).encode()
            return
        async with contextlib.aclosing(self.inner.generate(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        self.closed = True
        if self.hang_close:
            await asyncio.Event().wait()
        self.released.set()
        if self.inner is not None:
            await self.inner.close()

    def memory_bytes(self) -> int:
        return 0 if self.closed else 1 << 20

    def dead(self) -> str | None:
        return self.died

    def health(self) -> EngineHealth:
        return EngineHealth(running=1, waiting=2, kv_cache=0.5, silent_s=self.silent_s)

    @property
    def version(self) -> str:
        return "bad 1"
