"""What the host of a vLLM engine writes: logged at debug level, and read for progress and for why it ended."""

import asyncio
import os
import re
from collections import deque

from services._runtime.telemetry import get_logger
from services.inference.adapters.engine import OnProgress, ignore_progress

log = get_logger(__name__)

_TAIL = 40
_LINE = 4096
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"(?:^|[\s\]])((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)): (\S.*)$")
_POINTER = re.compile(r"initialization failed|[Ss]ee (root cause|stack trace)|EngineDeadError")
"""In what vLLM says where the cause is further up."""
_DOING = (
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine", 0.3),
    (re.compile(r"Starting to load model|Loading model from"), "loading the weights", 0.4),
    (re.compile(r"Loading weights took|Model loading took"), "preparing the KV cache", 0.7),
    (re.compile(r"Capturing CUDA graphs|Graph capturing|Warming up model"), "compiling and capturing graphs", 0.8),
    (re.compile(r"init engine .* took"), "starting the server", 0.9),
)
_SHARDS = re.compile(r"Loading safetensors checkpoint shards:\s+(\d+)% ")


class HostLog:
    """The host's standard output and error. ``progress`` is called for what its lines say that it does."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._rest = b""
        self._fd = -1
        self.progress: OnProgress = ignore_progress

    def open(self) -> int:
        """Begin to read; the end to write to, which the caller closes."""
        self._fd, end = os.pipe()
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return end

    def close(self) -> None:
        """Read what is there, and no more."""
        self._read()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def root_cause(self, reason: str) -> str:
        """The reason in vLLM's own words; that of the engine core where vLLM only points at it."""
        self._read()
        return self._error() or reason if _POINTER.search(reason) else reason

    def last_words(self, what: str) -> str:
        """``what`` has happened, with the last error that was written."""
        self._read()
        error = self._error()
        return f"{what} ({error})" if error else what

    def _error(self) -> str | None:
        for line in reversed(self._tail):
            found = _ERROR.search(line)
            if found and not _POINTER.search(line):
                return f"{found[1]}: {found[2]}"
        return None

    def _read(self) -> None:
        while self._fd >= 0:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                asyncio.get_running_loop().remove_reader(self._fd)
                os.close(self._fd)
                self._fd = -1
                return
            *lines, rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
            self._rest = rest[-_LINE:]
            for line in lines:
                self._said(_ANSI.sub("", line[:_LINE].decode(errors="replace")).rstrip())

    def _said(self, line: str) -> None:
        if not line:
            return
        self._tail.append(line)
        log.debug("vllm", model=self._model, line=line)
        if shards := _SHARDS.search(line):
            self.progress("loading the weights", 0.4 + 0.3 * int(shards[1]) / 100)
            return
        for pattern, doing, fraction in _DOING:
            if pattern.search(line):
                self.progress(doing, fraction)
