"""Logs and metrics of a process."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import REGISTRY, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from services._runtime.log_file import SharedLogFile
from services._runtime.settings_base import ConfigError
from services._runtime.settings_model import Logging

# A time of creation beside each series would double them, and Prometheus sees resets by itself.
disable_created_metrics()  # type: ignore[no-untyped-call]

_NOISY = ("faststream", "uvicorn.error", "uvicorn.access", "nats", "aiohttp.access", "httpx", "slack_sdk")


def setup_logging(service: str, settings: Logging) -> None:
    """Structured logs on stderr, and in `logging.file`: JSON, or for people on a terminal. Third-party loggers go the
    same way. Raises ConfigError when the file cannot be written.
    """
    human = settings.format == "human" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.DEBUG if settings.debug else getattr(logging, settings.level)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(_formatter(shared, human=human, colors=sys.stderr.isatty()))
    if settings.file is not None:
        handlers.append(_file(settings.file, settings))
        handlers[1].setFormatter(_formatter(shared, human=settings.format == "human", colors=False))
    root = logging.getLogger()
    for before in root.handlers:
        if isinstance(before, SharedLogFile):
            before.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        if level > logging.DEBUG:
            logger.setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def _formatter(shared: list[Any], *, human: bool, colors: bool) -> logging.Formatter:
    renderer: Any = structlog.dev.ConsoleRenderer(colors=colors) if human else structlog.processors.JSONRenderer()
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )


def _file(path: Path, settings: Logging) -> SharedLogFile:
    try:
        return SharedLogFile(path, settings.file_max_bytes, settings.file_backups)
    except OSError as exc:
        raise ConfigError(
            f"logging.file: {path} cannot be written ({exc.strerror}): name a file in a directory that this user may "
            "write to"
        ) from None


def get_logger(name: str) -> Any:
    """A structured logger: ``log.info("what_happened", key=value)``."""
    return structlog.get_logger(name)


class _Beside(Collector):
    """The process's metrics, and those of one more collector."""

    def __init__(self, more: Collector) -> None:
        self._more = more

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        yield from self._more.collect()


def render_metrics(accept: str, more: Collector) -> tuple[bytes, str]:
    """The process's metrics with those of ``more``, and their content type: OpenMetrics, which has exemplars, for who
    asks for it with ``accept`` (the header Accept), else Prometheus' text.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Beside(more)), content_type
