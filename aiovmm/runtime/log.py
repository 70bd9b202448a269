"""Log records of the library, made with the standard `logging` module under the name "aiovmm".

Nothing is configured here: as with every library, warnings go to stderr until the program sets up `logging`. A record's text
says all there is to say, the VM, the device, what happened, the error, in one line that commands no terminal and has an end,
whatever of a guest's or a file's it quotes. The same values (vm, device, ...) are in its `extra`, and so is what the program
has bound to structlog's context variables.

structlog is asked only if the program has imported it, and never imported: the first event may be one that a guest causes, and
an import takes the event loop, and with it all other guests, 80 ms.
"""

from __future__ import annotations

import logging
from typing import Any

from aiovmm.errors import readable
from aiovmm.runtime.lazy import imported

__all__ = ["Log"]

_IN_FRONT = ("vm", "device")
_LONGEST = 16_000  # characters: more than any of our errors has


class Log:
    """A logger whose events all carry `bound`; an event that nobody wants to see costs next to nothing."""

    def __init__(self, **bound: object) -> None:
        self._bound = bound
        self._logger = logging.getLogger("aiovmm")

    def debug(self, event: str, **values: object) -> None:
        """For who looks for a fault."""
        self._say(logging.DEBUG, event, values)

    def info(self, event: str, **values: object) -> None:
        """For who wants to know how the guest is doing."""
        self._say(logging.INFO, event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something is wrong, and the VM goes on."""
        self._say(logging.WARNING, event, values)

    def _say(self, level: int, event: str, values: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            traced = values.pop("exc_info", None)
            values = {**self._bound, **values}
            text = _in_words(event, values)
            self._logger.log(level, text, extra={**_context(), **values}, exc_info=traced, stacklevel=3)  # type: ignore[arg-type]


def _in_words(event: str, values: dict[str, object]) -> str:
    """`guest: disk0: device failed: error='...' kind=HostError`, for whoever prints no more than a record's message."""
    rest = " ".join(f"{key}={_quoted(value)}" for key, value in values.items() if key not in _IN_FRONT and value != "")
    parts = (values.get("vm"), values.get("device"), event, rest)
    return readable(": ".join(str(part) for part in parts if part), _LONGEST)


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isascii() and text.replace("-", "").replace(".", "").isalnum() else repr(text)


def _context() -> dict[str, Any]:
    """What the program has bound to structlog's context variables."""
    variables = imported("structlog.contextvars")
    return {} if variables is None else dict(variables.get_contextvars())
