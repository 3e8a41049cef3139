"""What every engine offers to the worker."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from services.inference.domain.requests import Wants


class EngineError(Exception):
    """An engine could not answer, or not to the end.

    ``status`` is what the client gets when nothing was sent yet; ``kind`` and ``code`` are OpenAI's error type and
    code. ``reset`` says that nothing of the request reached an engine, so that another may be tried.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "server_error", code: str | None = None,
        param: str | None = None, retry_after: int = 0, reset: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.reset = reset


@dataclass(slots=True)
class Report:
    """What the engine knows better than one who watches its output. -1 = it does not.

    ``first_token_s`` is from the call of `generate`; ``queue_s`` the wait inside the engine; ``gpu_us`` the time
    of the accelerator (on a CPU: of the computation) that this request took up, in microseconds: each moment is
    divided among the requests that ran in it. Tokens as the engine counted them, also of an answer that was cut short.
    """

    first_token_s: float = -1.0
    queue_s: float = -1.0
    gpu_us: int = 0
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1


@dataclass(slots=True)
class EngineRequest:
    """One request. ``route`` is chat, completions or embeddings; ``body`` is OpenAI JSON of that route, and
    ``wants`` what `requests.read` made of it. ``trace`` is the W3C traceparent of a request that is traced, else "".

    A stream must end with its usage in an event of its own where the engine can tell it, whether or not the
    caller asked: the worker needs it, and takes it out again.
    """

    route: str
    body: bytes
    wants: Wants
    stream: bool = False
    report: Report = field(default_factory=Report)
    trace: str = ""


@dataclass(frozen=True, slots=True)
class EngineHead:
    """Status and headers of an engine's answer; ``retry_after`` in seconds, 0 for none."""

    status: int = 200
    content_type: str = "application/json"
    retry_after: int = 0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """How an engine is now; -1 is what it cannot tell.

    ``running`` and ``waiting`` requests; ``kv_cache`` the share of its cache in use, 0 to 1; ``pids`` of the processes
    that hold it, this one aside, and ``thread`` the system's number of the thread of this one that computes, 0 for
    none; ``silent_s`` for how long it has shown no life while it should have.
    """

    running: int = -1
    waiting: int = -1
    kv_cache: float = -1.0
    pids: tuple[int, ...] = ()
    silent_s: float = 0.0
    thread: int = 0


UNKNOWN = EngineHealth()

OnProgress = Callable[[str, float], None]
"""Called with what is being done, in a few words, and how much of it, 0 to 1, negative where that is not known."""


def ignore_progress(_doing: str, _fraction: float) -> None:
    """For those who do not want to know."""


Pieces = AsyncGenerator[EngineHead | bytes, None]


class Engine(Protocol):
    """A model that can be asked. Nothing here may block the event loop for more than some 50 ms."""

    name: str

    async def load(self, progress: OnProgress = ignore_progress) -> None:
        """Make ready to generate. Raises an exception whose text is the reason.

        Cancelled, it leaves nothing behind that `close` would not free.
        """

    async def warm(self) -> None:
        """Whatever makes the first request as fast as the next ones."""

    def generate(self, request: EngineRequest) -> Pieces:
        """First one EngineHead, then the bytes of the answer as they come.

        Closing the generator, or cancelling the task that waits on it, stops the generation and frees what it
        held. Raises EngineError.
        """

    async def close(self) -> None:
        """Stop everything and give the memory back. No request may be running."""

    def memory_bytes(self) -> int:
        """Memory that the model's weights and state take here; 0 when they are elsewhere."""

    def dead(self) -> str | None:
        """Why the engine can answer nothing any more, or None."""

    def health(self) -> EngineHealth:
        """How it is now, from memory: asked four times a second."""

    @property
    def version(self) -> str:
        """Name and version of what computes, such as ``vllm 0.32.0``; empty where that is not known."""
