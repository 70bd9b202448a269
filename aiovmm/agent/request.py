"""What a process in a guest is to be, checked, and as the payload of a START frame. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fsencode  # names of files and arguments are bytes, and have a spelling as text
from typing import Any

from aiovmm.agent.wire import FRAME_MAX
from aiovmm.errors import UsageError
from aiovmm.runtime.arguments import a_mapping

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Request", "Text", "pty_size"]

PIPE, STDOUT, DEVNULL = -1, -2, -3  # asyncio.subprocess's
Text = str | bytes | PathLike[str] | PathLike[bytes]

_MODES = {DEVNULL: 0, PIPE: 1, STDOUT: 2}
_LIMITS = (  # by their numbers
    *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as"),
    *("locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
)
_NO_LIMIT = (1 << 64) - 1
_HEADER = struct.Struct("<I3BxHHIIHHHH")
_PTY, _ENDS, _APPLET, _STAYS = 1, 2, 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A process: `args`, `env` beside PATH, HOME, USER, LOGNAME and SHELL, which it has anyway, working directory `cwd`
    ("/"), `user` (a name or number, each with `:group`; the agent's own, root, if None).

    `limits`: {"nofile": 100, "as": (soft, hard)}, -1 for none, by the names of setrlimit(2) in lower case. `pty`:
    columns and rows of a terminal. `ends`: its output ends with it, even if a daemon of its has it open. `applet`:
    args[0] is a part of the agent. `window`: bytes of each output stream that may be under way."""

    args: Sequence[Text]
    env: Mapping[str, Text] = field(default_factory=dict)
    cwd: Text | None = None
    user: str | int | None = None
    limits: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    modes: tuple[int, int, int] = (PIPE, PIPE, PIPE)
    pty: tuple[int, int] | None = None
    ends: bool = False
    applet: bool = False
    stays: bool = False
    window: int = 256 << 10

    def payload(self) -> bytes:
        """Raises UsageError."""
        if isinstance(self.args, str | bytes) or not isinstance(self.args, Sequence) or not self.args:
            raise UsageError(f'{self.args!r} is no command: give a list of words, ["sh", "-c", "..."] for a shell\'s')
        columns, rows = self.pty or (0, 0)
        flags = _PTY * (self.pty is not None) | _ENDS * self.ends | _APPLET * self.applet | _STAYS * self.stays
        words = [_word(word, "an argument") for word in self.args]
        env = a_mapping(self.env, "env", '{"LANG": "C"}')
        variables = [_variable(name, value) for name, value in env.items()]
        asked = a_mapping(self.limits, "limits", '{"nofile": 100}')
        limits = b"".join(_limit(name, value) for name, value in asked.items())
        start = [_word("" if self.cwd is None else self.cwd, "cwd"), _word(_user(self.user), "user")]
        if len(words) + len(variables) > 4000:
            raise UsageError(f"{len(words)} arguments and {len(variables)} variables are more than 4000")
        header = _HEADER.pack(
            flags,
            *(_mode(stream, mode) for stream, mode in enumerate(self.modes)),
            rows,
            columns,
            self.window,
            self.window,
            len(words),
            len(variables),
            len(self.limits),
            0,
        )
        payload = header + limits + b"".join((*start, *words, *variables))
        if len(payload) > FRAME_MAX:
            raise UsageError(
                f"the command has {len(payload)} bytes, more than {FRAME_MAX}: give data as input=, or in a file"
            )
        return payload


def pty_size(pty: object) -> tuple[int, int] | None:
    """(columns, rows) of what create_process was given: None or False, True for 80 by 24, or a pair. Raises
    UsageError."""
    if pty is None or pty is False:
        return None
    if pty is True:
        return 80, 24
    if isinstance(pty, tuple) and len(pty) == 2 and all(isinstance(n, int) and 0 < n < 1 << 16 for n in pty):
        return pty
    raise UsageError(f"pty={pty!r}: say True, or (columns, rows)")


def _mode(stream: int, mode: object) -> int:
    if mode not in _MODES or (mode == STDOUT and stream != 2):
        name = ("stdin", "stdout", "stderr")[stream]
        raise UsageError(f"{name}={mode!r}: PIPE or DEVNULL" + (" or STDOUT" if stream == 2 else ""))
    return _MODES[mode]


def _user(user: object) -> str:
    if user is None or isinstance(user, str):
        return user or ""
    if isinstance(user, int) and not isinstance(user, bool):
        return str(user)
    raise UsageError(f'user={user!r} is no user: a name, a number, or either with its group, "name:group"')


def _word(text: Any, what: str) -> bytes:
    try:
        word = fsencode(text)
    except TypeError as exc:
        raise UsageError(f"{what} is {text!r}, which is neither text, bytes nor a path") from exc
    except UnicodeEncodeError as exc:
        raise UsageError(f"{what} is {text!r}, which no file system has a spelling for") from exc
    if b"\0" in word:
        raise UsageError(f"{what} has a NUL in it: {text!r}")
    return word + b"\0"


def _variable(name: str, value: Any) -> bytes:
    word = _word(name, "the name of a variable")
    if word == b"\0" or b"=" in word:
        raise UsageError(f"{name!r} is no name of a variable")
    return word[:-1] + b"=" + _word(value, f"variable {name}")


def _limit(name: str, value: int | tuple[int, int]) -> bytes:
    if name not in _LIMITS:
        raise UsageError(f"limit {name!r}: one of {', '.join(_LIMITS)}")
    pair = value if isinstance(value, tuple) else (value, value)
    numbers = [_NO_LIMIT if number == -1 else number for number in pair]
    if len(numbers) != 2 or not all(_is_limit(number) for number in numbers):
        raise UsageError(f"limit {name}: {value!r} is not a number, -1 for none, or a pair of them")
    return struct.pack("<IQQ", _LIMITS.index(name), *numbers)


def _is_limit(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= _NO_LIMIT
