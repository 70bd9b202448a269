"""Errors and ends of guests as plain data, and back. Pure.

Texts are a line each, and of a bounded length: a worker may be a guest's, and the program keeps a thousand events of each guest.
"""

from __future__ import annotations

import errno
from typing import Any

from aiovmm import errors
from aiovmm.errors import AiovmmError, HostError, SnapshotError, printable
from aiovmm.lifecycle import ExitReason, ExitStatus
from aiovmm.runtime.plain import Fields, Plain, State

__all__ = ["LONGEST", "WorkerLost", "error_of", "error_to_state", "short", "status_of", "status_to_state", "words"]


LONGEST = 4096
"""Characters of a text."""


class WorkerLost(HostError):
    """The worker process has ended, and its guests with it; `str` tells how. The pool starts another one."""

    def __init__(self, what: str) -> None:
        self.what = printable(what)[:LONGEST]
        super().__init__(self.what, errno.ECHILD, "what it said is in the log, if it said anything")

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})"


_MADE_OF: dict[type[BaseException], tuple[str, ...]] = {
    errors.ConfigError: ("option", "reason", "hint"),
    errors.ImageError: ("path", "reason", "hint"),
    errors.SnapshotError: ("",),
    errors.StateError: ("",),
    errors.UsageError: ("",),
    errors.KvmError: ("operation", "errno", "hint", "filename"),
    errors.HostError: ("operation", "errno", "hint", "filename"),
    errors.HotplugTimeout: ("what", "reason", "hint"),
    errors.HotplugError: ("what", "reason", "hint"),
    errors.PeerError: ("",),
    errors.AiovmmError: ("",),
    KeyError: ("",),
    TimeoutError: ("",),
    ConnectionRefusedError: ("",),
    ConnectionResetError: ("",),
}
"""By their arguments, as attributes; "" is the text. The more special ones come first."""
_BY_NAME = {kind.__name__: kind for kind in _MADE_OF}


def error_to_state(error: BaseException) -> State:
    """What can be made again of it elsewhere: one of our own errors, or its text."""
    kind = next((kind for kind in _MADE_OF if isinstance(error, kind)), None)
    if kind is None or isinstance(error, WorkerLost):
        return {"kind": "AiovmmError", "with": [short(f"{type(error).__name__}: {error}")]}
    return {"kind": kind.__name__, "with": [_argument(error, name) for name in _MADE_OF[kind]]}


def _argument(error: BaseException, name: str) -> Plain:
    if not name:
        return short(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error))
    value = getattr(error, name)
    return value if value is None or isinstance(value, int) else short(str(value))


def short(text: str) -> str:
    """The beginning of it, if it is longer than `words` takes."""
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def words(fields: Fields, name: str) -> str:
    """A text of a worker's, as one line that can be printed. Raises SnapshotError for one that is too long."""
    return _line(fields.text(name), f"{fields.where}.{name}")


def _line(text: Plain, where: str) -> str:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise SnapshotError(f"{where} is no text of at most {LONGEST} characters")
    return printable(text)


def error_of(state: Plain) -> Exception:
    """The inverse. Raises SnapshotError for what is none."""
    fields = Fields(state, "error")
    kind = _BY_NAME[fields.text("kind", among=tuple(_BY_NAME))]
    values = fields.list("with", len(_MADE_OF[kind]))
    fields.end()
    checked: list[Any] = []
    for name, value in zip(_MADE_OF[kind], values, strict=True):
        if name == "errno":
            checked.append(value if type(value) is int and 0 <= value < 1 << 16 else errno.EIO)
        else:
            checked.append(None if value is None and name == "filename" else _line(value, f"error.{name or 'text'}"))
    made = kind(*checked)
    return made if isinstance(made, Exception) else AiovmmError(str(made))


def status_to_state(status: ExitStatus) -> State:
    """Its error is what can be made again of it."""
    error = error_to_state(status.error) if status.error is not None else None
    return {"reason": status.reason.value, "detail": short(status.detail), "error": error}


def status_of(state: Plain) -> ExitStatus:
    """The inverse. Raises SnapshotError for what is none."""
    fields = Fields(state, "status")
    reason = ExitReason(fields.text("reason", among=[reason.value for reason in ExitReason]))
    detail = words(fields, "detail")
    error = None if fields.absent("error") else error_of(fields.state("error"))
    fields.end()
    return ExitStatus(reason, detail, error)
