"""Loggers of the library: structlog on top of the standard `logging` module, under the name "aiovmm".

Nothing is configured here: as with every library, warnings go to stderr until the program sets up `logging`. What an event
carries (vm, device, ...) is in the record's `extra`, and so is what the program has bound to structlog's context variables.
structlog is imported with the first event that somebody wants to see: that is an eighth of what a monitor imports.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["Log", "get_logger"]

_NAME = "aiovmm"


def get_logger() -> Any:
    """A bound logger with structlog's methods."""
    import structlog

    return structlog.wrap_logger(
        logging.getLogger(_NAME),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )


class Log:
    """A logger whose events all carry `bound`; an event that nobody wants to see costs next to nothing."""

    def __init__(self, **bound: object) -> None:
        self._bound = bound
        self._wanted = logging.getLogger(_NAME).isEnabledFor
        self._logger: Any = None

    def debug(self, event: str, **values: object) -> None:
        """For who looks for a fault."""
        self._say(logging.DEBUG, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something is wrong, and the VM goes on."""
        self._say(logging.WARNING, event, values)

    def _say(self, level: int, event: str, values: dict[str, object]) -> None:
        if self._wanted(level):
            if self._logger is None:
                self._logger = get_logger().bind(**self._bound)
            self._logger.log(level, event, **values)
