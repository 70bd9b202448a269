"""Log records of the library, made with the standard `logging` module under the name "aiovmm".

Nothing is configured here: as with every library, warnings go to stderr until the program sets up `logging`. What an event
carries (vm, device, ...) is in the record's `extra`, and so is what the program has bound to structlog's context variables.

structlog is asked only if the program has imported it, and never imported: the first event may be one that a guest causes, and
an import takes the event loop, and with it all other guests, 80 ms.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["Log"]


class Log:
    """A logger whose events all carry `bound`; an event that nobody wants to see costs next to nothing."""

    def __init__(self, **bound: object) -> None:
        self._bound = bound
        self._logger = logging.getLogger("aiovmm")

    def debug(self, event: str, **values: object) -> None:
        """For who looks for a fault."""
        self._say(logging.DEBUG, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something is wrong, and the VM goes on."""
        self._say(logging.WARNING, event, values)

    def _say(self, level: int, event: str, values: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={**_context(), **self._bound, **values}, stacklevel=3)


def _context() -> dict[str, Any]:
    """What the program has bound to structlog's context variables."""
    variables = sys.modules.get("structlog.contextvars")
    return {} if variables is None else dict(variables.get_contextvars())
