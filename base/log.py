"""Structured logs: one event per line, a past-tense name and fields; text for people, JSON for programs.

Event names are `noun_verb_past` (`lease_granted`). Ids go in fields, never into the name. Shells log the *effects* they
carry out, so that a log reads as the transcript of the core. Keys that can hold a secret are masked before they are
written (`SECRET_KEYS`), whoever logs them.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

__all__ = ["configure", "logger"]

SECRET_KEYS = frozenset({"token", "ticket", "secret", "password", "authorization", "api_key", "peer_key"})


def configure(*, level: str = "info", as_json: bool = False, stream: TextIO | None = None) -> None:
    """Set up logging for the whole process. Called once, by the command that starts it.

    Args:
        level: debug, info, warning or error.
        as_json: one JSON object a line instead of coloured text.
        stream: where to write; standard error by default, so that standard output stays for results.
    """
    renderer: Processor = structlog.processors.JSONRenderer() if as_json else _text_renderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _mask_secrets,
            structlog.processors.StackInfoRenderer(),
            *([structlog.processors.ExceptionRenderer()] if as_json else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _text_renderer() -> Processor:
    # Plain tracebacks: the pretty ones show local variables, secrets among them.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def logger(**fields: object) -> FilteringBoundLogger:
    """Return a logger that adds the fields to every line."""
    bound: FilteringBoundLogger = structlog.get_logger().bind(**fields)
    return bound


def _mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key in SECRET_KEYS & event.keys():
        event[key] = "***"
    return event
