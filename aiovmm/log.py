"""Loggers of the library: structlog on top of the standard `logging` module, under the name "aiovmm".

Nothing is configured here: as with every library, warnings go to stderr until the program sets up `logging`. What an event
carries (vm, device, ...) is in the record's `extra`, and so is what the program has bound to structlog's context variables.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

__all__ = ["get_logger"]


def get_logger(name: str = "aiovmm") -> Any:
    """A bound logger with structlog's methods."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )
