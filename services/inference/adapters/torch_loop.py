"""The one thread that owns a torch model: it loads it, steps the batch, and tells the event loop what came."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

# What transformers otherwise imports at the first load, holding up the event loop while other models serve.
import torch._dynamo
import transformers.modeling_utils
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from services._runtime.telemetry import get_logger
from services.inference.adapters.apart import apart
from services.inference.adapters.torch_batch import NOT_FINITE, Results, TorchBatch
from services.inference.domain.sequence import Delta, Sequence

log = get_logger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
_JOINS_BETWEEN_STEPS = 4
"""Prompts read between two steps: more would make those who are being answered wait."""

_LOADING = threading.Lock()
"""transformers changes torch's defaults for the whole process while it loads: two loads at once mix up their
weights, without a word.
"""

Sink = Callable[[Delta], None]


class EmbeddingError(ValueError):
    """The model gave no usable vector."""


class TorchLoop:
    """Sequences and other work go in from the event loop; their results come back on it."""

    def __init__(self, path: Path, *, dtype: str, threads: int, batch_size: int, name: str) -> None:
        if dtype not in _DTYPES:
            raise ValueError(f"engine_args.dtype: '{dtype}' is not one of {', '.join(_DTYPES)}")
        self._path = path
        self._dtype = dtype
        self._threads = threads
        self._batch_size = batch_size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Sequence] = deque()
        self._sinks: dict[Sequence, Sink] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name=f"torch-{name}", daemon=True)
        self._batch: TorchBatch | None = None
        self.model: Any = None
        self.tokenizer: Any = None
        self.error: str | None = None

    async def start(self) -> None:
        """Load the model in the thread. Raises what loading raises."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await self.call(self._load)

    async def stop(self) -> None:
        """End the thread after its present step; sequences that still run end with an error."""
        if not self._thread.is_alive():
            return

        def stop() -> None:
            self._stopping = True

        self._inbox.put(stop)
        await apart(self._thread.join, "join")
        self.model = self.tokenizer = self._batch = None

    @property
    def alive(self) -> bool:
        """Whether the thread takes work."""
        return self._thread.is_alive() and not self._stopping

    @property
    def thread(self) -> int:
        """The system's number of the thread; 0 before it runs."""
        return self._thread.native_id or 0

    @property
    def running(self) -> int:
        """Sequences that have been submitted and have neither ended nor been dropped."""
        return len(self._sinks)

    def submit(self, sequence: Sequence, sink: Sink) -> None:
        """Generate; ``sink`` is called on the event loop with each Delta."""

        def enter() -> None:
            self._sinks[sequence] = sink
            self._waiting.append(sequence)

        self._inbox.put(enter)

    def cancel(self, sequence: Sequence) -> None:
        """Stop generating before the next step; the sink hears no more."""
        sequence.cancelled = True
        self._inbox.put(_wake)

    async def call(self, work: Callable[[], Any]) -> Any:
        """The result of ``work``, run in the thread between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, exc: BaseException | None) -> None:
            if future.cancelled():
                return
            if exc is None:
                future.set_result(result)
            else:
                future.set_exception(exc)

        def run() -> None:
            try:
                result, error = work(), None
            except Exception as exc:
                result, error = None, exc
            loop.call_soon_threadsafe(settle, result, error)

        self._inbox.put(run)
        return await future

    def embed(self, prompt: list[int]) -> list[float]:
        """The mean of the prompt's last hidden states as a unit vector. For `call`. Raises EmbeddingError."""
        with torch.inference_mode():
            output = self.model.base_model(input_ids=torch.tensor([prompt]), use_cache=False)
            mean = output.last_hidden_state[0].float().mean(dim=0)
            vector = torch.nn.functional.normalize(mean, dim=0)
        if not bool(torch.isfinite(vector).all()):
            raise EmbeddingError(NOT_FINITE)
        return [float(value) for value in vector]

    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        model = self.model
        return sum(p.numel() * p.element_size() for p in model.parameters()) if model is not None else 0

    def _load(self) -> None:
        torch.set_num_threads(self._threads)
        transformers_logging.disable_progress_bar()
        common = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(self._path, **common)
        with _LOADING:
            model, info = AutoModelForCausalLM.from_pretrained(
                self._path, dtype=_DTYPES[self._dtype], use_safetensors=True, output_loading_info=True, **common
            )
        if lacking := sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])}):
            raise ValueError(f"{self._path}: the weights lack {', '.join(lacking[:5])}, or have them in another shape")
        self.model = model.eval()
        self._batch = TorchBatch(self.model, self.tokenizer)

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._take_in(block=not self._busy())
                self._turn()
        except BaseException as exc:
            # Nothing can be generated without this thread: say so, the worker reports the model as failed.
            self.error = f"the engine's thread ended: {exc!r}"
            log.exception("torch_thread_ended")
        self._fail_all("the engine has stopped")

    def _busy(self) -> bool:
        return bool(self._waiting) or bool(self._batch)

    def _take_in(self, *, block: bool) -> None:
        try:
            while True:
                self._inbox.get(block=block)()
                block = False
        except queue.Empty:
            return

    def _turn(self) -> None:
        batch = self._batch
        if batch is None:
            return
        batch.drop_cancelled()
        for sequence in [known for known in self._sinks if known.cancelled]:
            del self._sinks[sequence]
        results: Results = []
        for _ in range(_JOINS_BETWEEN_STEPS):
            if not self._waiting or len(batch) >= self._batch_size:
                break
            sequence = self._waiting.popleft()
            if not sequence.cancelled:
                results += self._guarded(partial(batch.join, sequence), [sequence])
        if results:
            self._deliver(results)
        if len(batch):
            stepping = batch.sequences()
            self._deliver(self._guarded(batch.step, stepping, on_error=batch.clear))

    @staticmethod
    def _guarded(
        work: Callable[[], Results], concerned: list[Sequence], on_error: Callable[[], None] | None = None
    ) -> Results:
        try:
            return work()
        except Exception as exc:
            # Out of memory, say: those in this step fail, the next ones may well succeed.
            log.exception("generation_failed", sequences=len(concerned))
            if on_error is not None:
                on_error()
            return [(sequence, sequence.fail(f"generation failed ({type(exc).__name__})")) for sequence in concerned]

    def _deliver(self, results: Results) -> None:
        deliveries = []
        for sequence, delta in results:
            sink = self._sinks.pop(sequence, None) if delta.last else self._sinks.get(sequence)
            if sink is not None and not sequence.cancelled:
                deliveries.append((sink, delta))
        if deliveries and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_hand_out, deliveries)

    def _fail_all(self, reason: str) -> None:
        self._waiting.clear()
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                break
        self._deliver([(sequence, sequence.fail(reason)) for sequence in list(self._sinks)])


def _hand_out(deliveries: list[tuple[Sink, Delta]]) -> None:
    for sink, delta in deliveries:
        sink(delta)


def _wake() -> None:
    """Nothing to do but look again."""
