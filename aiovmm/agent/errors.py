"""What can go wrong with something that is run in a guest.

AgentError
├── AgentLost           the guest ended, or its agent, while something was asked of it: `status` says how the guest did
├── BootTimeout         the agent did not answer in time: `stage` says how far the guest came
├── CommandNotFound     no such program in the guest (FileNotFoundError)
├── CommandTimeout      it took too long, and was ended; with the output so far (TimeoutError)
├── CommandFailed       check=True, and its status was not 0; with its output
├── OutputTooLong       it printed more than run() keeps, and was ended; with what was kept
└── GuestOSError        the guest's kernel refused something (OSError; also FileNotFoundError, PermissionError, ... by
its errno)
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from aiovmm.errors import AiovmmError, readable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiovmm.lifecycle import ExitStatus

__all__ = [
    "AgentError",
    "AgentLost",
    "BootTimeout",
    "CommandFailed",
    "CommandNotFound",
    "CommandTimeout",
    "GuestOSError",
    "OutputTooLong",
    "guest_os_error",
]

_TAIL = 2000  # bytes of output in a message


class AgentError(AiovmmError):
    """Base of all that comes from running something in a guest."""

    _longest = 20_000  # characters, spelt: _TAIL of what it has printed and of its errors


class AgentLost(AgentError, ConnectionError):
    """The guest ended, or its agent did, with something under way. `status`: how the guest ended; None if it runs on, or if
    that is not known, as of a guest of another process (`runs_on` false)."""

    def __init__(
        self, what: str, status: ExitStatus | None = None, console_tail: bytes = b"", *, runs_on: bool = True
    ) -> None:
        self.status = status
        self.console_tail = console_tail
        text = f"{what}: "
        if status is None:
            text += "the agent in the guest has ended, or does not answer any more"
            text += "; the guest runs on" if runs_on else ", as when the guest itself has ended"
        else:
            text += f"the guest has ended ({status.reason.value}{': ' if status.detail else ''}{status.detail})"
        super().__init__(text + _ending("; its console ends", console_tail))


class BootTimeout(AgentError, TimeoutError):
    """The agent did not answer in `timeout` seconds. `stage`: "driver" (the guest has not set its vsock device up),
    "agent" (nobody listens at the agent's port) or "greeting" (somebody does, and says nothing). `hint` says what to
    look at."""

    def __init__(self, stage: str, timeout: float, console_tail: bytes, hint: str) -> None:
        self.stage = stage
        self.timeout = timeout
        self.console_tail = console_tail
        self.hint = hint
        super().__init__(
            f"no answer from the agent in the guest within {timeout:g} s, which has come up to stage {stage!r}: {hint}"
            + _ending("; its console ends", console_tail)
        )


class _WithOutput(AgentError):
    """`args_`, and what the command printed: `stdout`, `stderr`."""

    def __init__(self, text: str, command: Sequence[str | bytes], stdout: bytes, stderr: bytes) -> None:
        self.command = tuple(command)
        self.stdout = stdout
        self.stderr = stderr
        tail = _ending("; stderr ends", stderr) or _ending("; stdout ends", stdout)
        super().__init__(f"{command_line(command)} {text}{tail}")


class CommandTimeout(_WithOutput, TimeoutError):
    """It did not end in `timeout` seconds, and was ended with all its process group. `stdout`, `stderr`: what it had
    printed."""

    def __init__(
        self, stdout: bytes, stderr: bytes, *, command: Sequence[str | bytes] = (), timeout: float = 0.0
    ) -> None:
        self.timeout = timeout
        super().__init__(f"did not end within {timeout:g} s", command, stdout, stderr)


class CommandFailed(_WithOutput):
    """check=True, and the command ended with `returncode`: its status, or the number of a signal below zero."""

    def __init__(self, command: Sequence[str | bytes], returncode: int, stdout: bytes, stderr: bytes) -> None:
        self.returncode = returncode
        super().__init__(f"ended with {said(returncode)}", command, stdout, stderr)


class OutputTooLong(_WithOutput):
    """It printed more than `limit` bytes, and was ended. `stdout`, `stderr`: what there is of it."""

    def __init__(self, command: Sequence[str | bytes], limit: int, stdout: bytes, stderr: bytes) -> None:
        self.limit = limit
        text = f"printed more than {limit} bytes: let run(output_limit=) be more, or read its streams (create_process)"
        super().__init__(text, command, stdout, stderr)


class GuestOSError(AgentError, OSError):
    """The guest's kernel refused `operation`: `errno`, and the file in the guest if there is one."""

    def __init__(self, operation: str, errno_: int, path: str | None = None) -> None:
        self.operation = operation
        super().__init__(errno_, f"{operation}: {os.strerror(errno_)}", path)

    def __str__(self) -> str:
        return readable(f"{self.strerror}" + (f": {self.filename}" if self.filename else ""))


class CommandNotFound(GuestOSError, FileNotFoundError):
    """There is no such program in the guest."""


class _NotFound(GuestOSError, FileNotFoundError):
    pass


class _Exists(GuestOSError, FileExistsError):
    pass


class _Denied(GuestOSError, PermissionError):
    pass


class _IsDirectory(GuestOSError, IsADirectoryError):
    pass


class _NoDirectory(GuestOSError, NotADirectoryError):
    pass


class _Refused(GuestOSError, ConnectionRefusedError):
    pass


_BY_ERRNO: dict[int, type[GuestOSError]] = {
    errno.ENOENT: _NotFound,
    errno.EEXIST: _Exists,
    errno.EACCES: _Denied,
    errno.EPERM: _Denied,
    errno.EISDIR: _IsDirectory,
    errno.ENOTDIR: _NoDirectory,
    errno.ECONNREFUSED: _Refused,
}


def guest_os_error(operation: str, number: int, path: str | None = None) -> GuestOSError:
    """With the class that Python has for its errno."""
    return _BY_ERRNO.get(number, GuestOSError)(operation, number, path)


def said(returncode: int) -> str:
    """Of a status, as people say it."""
    if returncode >= 0:
        return f"status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def command_line(command: Sequence[str | bytes]) -> str:
    """In a message: one line, not too long."""
    words = " ".join(os.fsdecode(word) for word in command) or "the command"
    return repr(words if len(words) <= 200 else words[:200] + "...")


def _ending(label: str, data: bytes) -> str:
    return f"{label}: {data[-_TAIL:]!r}" if data else ""
