"""Errors and ends of guests as plain data, and back. Pure."""

from __future__ import annotations

import errno
from typing import Any

from aiovmm import errors
from aiovmm.errors import AiovmmError, HostError
from aiovmm.lifecycle import ExitReason, ExitStatus
from aiovmm.runtime.plain import Fields, Plain, State

__all__ = ["WorkerLost", "error_of", "error_to_state", "status_of", "status_to_state"]


class WorkerLost(HostError):
    """The worker process has ended, and its guests with it; `str` tells how. The pool starts another one."""

    def __init__(self, what: str) -> None:
        super().__init__(
            what, errno.ECHILD, "what it said is on the standard error of this process, if it said anything"
        )
        self.what = what

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
        return {"kind": "AiovmmError", "with": [f"{type(error).__name__}: {error}"]}
    return {"kind": kind.__name__, "with": [_argument(error, name) for name in _MADE_OF[kind]]}


def _argument(error: BaseException, name: str) -> Plain:
    if not name:
        return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    value = getattr(error, name)
    return value if value is None or isinstance(value, int) else str(value)


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
            checked.append(None if value is None and name == "filename" else str(value))
    made = kind(*checked)
    return made if isinstance(made, Exception) else AiovmmError(str(made))


def status_to_state(status: ExitStatus) -> State:
    """Its error is what can be made again of it."""
    error = error_to_state(status.error) if status.error is not None else None
    return {"reason": status.reason.value, "detail": status.detail, "error": error}


def status_of(state: Plain) -> ExitStatus:
    """The inverse. Raises SnapshotError for what is none."""
    fields = Fields(state, "status")
    reason = ExitReason(fields.text("reason", among=[reason.value for reason in ExitReason]))
    detail = fields.text("detail")
    error = None if fields.absent("error") else error_of(fields.state("error"))
    fields.end()
    return ExitStatus(reason, detail, error)
