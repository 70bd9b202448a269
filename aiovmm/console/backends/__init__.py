"""The places a console can be joined to besides the program's own streams, and `open_backend`, which picks one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.config import ConsoleConfig, ConsoleMode
from aiovmm.console.backends.base import ConsoleBackend
from aiovmm.console.keys import DEFAULT_DETACH
from aiovmm.console.stream import Console
from aiovmm.console.terminal import Terminal
from aiovmm.errors import UsageError
from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.console.backends.file import FileBackend
    from aiovmm.console.backends.null import NullBackend
    from aiovmm.console.backends.pty import PtyBackend
    from aiovmm.console.backends.stdio import StdioBackend
    from aiovmm.console.backends.streams import StreamBackend
    from aiovmm.console.backends.tty import TtyBackend
    from aiovmm.console.backends.unix import SocketBackend

__all__ = [
    "ConsoleBackend",
    "FileBackend",
    "NullBackend",
    "PtyBackend",
    "SocketBackend",
    "StdioBackend",
    "StreamBackend",
    "TtyBackend",
    "open_backend",
]


def open_backend(
    config: ConsoleConfig, console: Console, *, terminal: Terminal | None = None, detach: bytes = DEFAULT_DETACH
) -> ConsoleBackend:
    """The back end that `config` asks for, to be used with `async with`.

    `tty` where neither standard input nor output is a terminal carries the bytes as they are. `off` means that there is no such
    device, so there is no back end either (UsageError).
    """
    match config.mode:
        case ConsoleMode.TTY:
            terminal = terminal or Terminal(filtered=config.filter)
            if terminal.is_terminal():
                from aiovmm.console.backends.tty import TtyBackend

                return TtyBackend(console, terminal, detach=detach)
            from aiovmm.console.backends.stdio import StdioBackend

            return StdioBackend(console, terminal.input_fd, terminal.output_fd, on_output_lost=terminal.on_output_lost)
        case ConsoleMode.PTY:
            from aiovmm.console.backends.pty import PtyBackend

            return PtyBackend(console)
        case ConsoleMode.SOCKET:
            assert config.path is not None
            from aiovmm.console.backends.unix import SocketBackend

            return SocketBackend(console, config.path)
        case ConsoleMode.FILE:
            assert config.path is not None
            from aiovmm.console.backends.file import FileBackend

            return FileBackend(console, config.path)
        case ConsoleMode.NULL:
            from aiovmm.console.backends.null import NullBackend

            return NullBackend(console)
        case ConsoleMode.OFF:
            raise UsageError("a console that is off has no back end")


__getattr__ = lazy_names(
    __name__,
    {
        "aiovmm.console.backends.file": "FileBackend",
        "aiovmm.console.backends.null": "NullBackend",
        "aiovmm.console.backends.pty": "PtyBackend",
        "aiovmm.console.backends.stdio": "StdioBackend",
        "aiovmm.console.backends.streams": "StreamBackend",
        "aiovmm.console.backends.tty": "TtyBackend",
        "aiovmm.console.backends.unix": "SocketBackend",
    },
)
