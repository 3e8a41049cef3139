"""A request in flight on this worker."""

import asyncio
from typing import TYPE_CHECKING

from schemas.v1.inference import MAX_PIECE, InferRequest, ReplyHead
from services.inference.adapters.engine import Report
from services.inference.adapters.served import ServedModel
from services.inference.domain.legacy import LegacyReply
from services.inference.domain.outflow import Outflow
from services.inference.domain.replies import Inspector
from services.inference.domain.requests import Wants

if TYPE_CHECKING:
    from opentelemetry.trace import Span

LOST = "router_lost"
STOPPED = "stopped"
"""Besides the outcomes ``timeout`` and ``client_cancel``, what may cut a job short."""

_NO_WANTS = Wants()


class Job:
    """A request in flight. ``end`` says why it was cut short, if it was; ``spans`` are the worker's and the engine's of
    one that is traced, once it is the engine's turn.
    """

    __slots__ = (
        "body", "content", "end", "engine_at", "flow", "frame", "head", "head_sent", "inspector", "last", "legacy",
        "model", "reply", "report", "running", "slot", "spans", "started", "task", "waiting", "wake",
    )  # fmt: skip

    def __init__(self, model: ServedModel, frame: InferRequest, body: bytes, reply: str, now: float) -> None:
        self.model = model
        self.frame = frame
        self.body = body
        self.reply = reply
        self.started = now
        self.last = now
        self.engine_at = 0.0
        self.flow = Outflow(frame.credit, MAX_PIECE)
        self.head: ReplyHead | None = None
        self.head_sent = False
        self.content = False
        self.legacy: LegacyReply | None = None
        self.inspector = Inspector(_NO_WANTS)
        self.report = Report()
        self.spans: tuple[Span, Span] | None = None
        self.end: str | None = None
        self.running = False
        self.waiting = False
        self.slot: asyncio.Future[None] | None = None
        self.wake: asyncio.Event | None = None
        self.task: asyncio.Task[None] | None = None

    def stop(self, reason: str) -> None:
        """Cut it short: cancels the generation."""
        if self.end is None and self.task is not None:
            self.end = reason
            self.task.cancel()

    @property
    def queue_limit_s(self) -> float:
        """How long it may wait for a slot, in seconds from its arrival."""
        config, deadline = self.model.config, self.frame.deadline_ms
        limit = config.timeout_seconds if config.queue_timeout_seconds is None else config.queue_timeout_seconds
        return min(limit, deadline / 1000) if deadline > 0 else limit

    def overdue(self, now: float) -> bool:
        """Whether it has taken longer than the model's limits, or than its first byte was given."""
        config = self.model.config
        if now - self.started > config.total_timeout_seconds:
            return True
        deadline = self.frame.deadline_ms
        if deadline and not self.content and now - self.started > deadline / 1000:
            return True
        # A reader without credit is not the engine's delay.
        return not self.waiting and now - self.last > config.timeout_seconds
