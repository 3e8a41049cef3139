"""Logs and metrics of a process."""

import logging
import sys
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from services._runtime.settings_model import Logging

_NOISY = ("faststream", "uvicorn.error", "uvicorn.access", "nats", "aiohttp.access", "httpx", "slack_sdk")


def setup_logging(service: str, settings: Logging) -> None:
    """Structured logs on stderr: JSON, or for people on a terminal. Third-party loggers go the same way."""
    human = settings.format == "human" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.DEBUG if settings.debug else getattr(logging, settings.level)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if human else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
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


def get_logger(name: str) -> Any:
    """A structured logger: ``log.info("what_happened", key=value)``."""
    return structlog.get_logger(name)


def render_metrics() -> tuple[bytes, str]:
    """The process's metrics in Prometheus text and their content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
