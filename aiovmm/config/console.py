"""Consoles: the serial port, the virtio console, and the debug console."""

from __future__ import annotations

import enum
from pathlib import Path

from aiovmm.config.checks import check_path, check_socket
from aiovmm.config.kinds import dataclass
from aiovmm.config.placed import PlacedConfig
from aiovmm.errors import ConfigError

__all__ = ["ConsoleConfig", "ConsoleMode", "DebugConsoleConfig"]

_HISTORY = (4096, 1 << 30)


class ConsoleMode(enum.Enum):
    """Where a console goes besides the program's own stream."""

    OFF = "off"  # no such device in the guest
    NULL = "null"  # the device is there; only the program's stream has its output
    TTY = "tty"
    PTY = "pty"
    SOCKET = "socket"
    FILE = "file"


@dataclass(frozen=True)
class ConsoleConfig(PlacedConfig):
    """A serial port or virtio console: its mode, the path for `socket` and `file`, the history kept, in bytes. `filter`: a
    terminal is shown what draws alone, so that the guest can neither ask it nor reach beyond its screen.

    Where it sits is a virtio console's; the serial port is not on PCI, and its `id` and place stay as they are.
    """

    mode: ConsoleMode = ConsoleMode.NULL
    path: Path | None = None
    history: int = 1 << 20
    filter: bool = False

    def __post_init__(self) -> None:
        self._check_place("console")
        if self.filter and self.mode is not ConsoleMode.TTY:
            raise ConfigError(
                "console.filter", f"is for a terminal, not for mode {self.mode.value}", "aiovmm attach --filter"
            )
        needs_path = self.mode in (ConsoleMode.SOCKET, ConsoleMode.FILE)
        if needs_path and self.path is None:
            raise ConfigError("console.path", f"mode {self.mode.value} needs a path", f"say {self.mode.value}=PATH")
        if not needs_path and self.path is not None:
            raise ConfigError("console.path", f"mode {self.mode.value} takes no path")
        if self.path is not None:
            check = check_socket if self.mode is ConsoleMode.SOCKET else check_path
            check(f"console.{self.mode.value}", self.path)
        if not _HISTORY[0] <= self.history <= _HISTORY[1]:
            raise ConfigError("console.history", f"{self.history} bytes are not in {_HISTORY[0]}..{_HISTORY[1]}")


@dataclass(frozen=True)
class DebugConsoleConfig:
    """A port of a PC, `iobase`, at which each byte that is written is text: what firmware, and kernels before they have a
    console, say. Modes are those of a console."""

    mode: ConsoleMode = ConsoleMode.OFF
    path: Path | None = None
    iobase: int = 0xE9
    history: int = 1 << 20
    filter: bool = False

    def __post_init__(self) -> None:
        try:
            ConsoleConfig(self.mode, self.path, self.history, self.filter)
        except ConfigError as exc:
            raise ConfigError(exc.option.replace("console", "debug_console", 1), exc.reason, exc.hint) from None
        if not 0 <= self.iobase <= 0xFFFF:
            raise ConfigError("debug_console.iobase", f"{self.iobase:#x} is no port", "0xe9 is usual")

    @property
    def console(self) -> ConsoleConfig:
        """Where it goes."""
        return ConsoleConfig(self.mode, self.path, self.history, self.filter)
