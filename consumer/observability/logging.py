"""Configures logging: one line per event on stderr, without control characters."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from consumer.config import LogConfig
from consumer.observability.log_filter import Repeats


def set_up_logging(config: LogConfig) -> None:
    """Log one line per event to stderr, from structlog and from `logging` (librdkafka, Ultralytics).

    Args:
        config: The `log` options.
    """
    as_json = config.format == "json" or (config.format == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape,
    ]
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.addFilter(Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)


def _escape(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape all texts of an event. Texts from brokers and libraries must not control a terminal or forge a line."""
    for name, value in event.items():
        if isinstance(value, str) and name != "exception":  # a traceback has several lines; JSON escapes them
            event[name] = printable(value)
    return event


def printable(text: str) -> str:
    """Escape all characters that could control a terminal or forge a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
