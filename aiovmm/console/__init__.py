"""Async streams over a guest's serial port or virtio console, and the places they can be joined to.

stream      Console, what a program holds: read, expect, write, attach
reader      ConsoleReader, one cursor into the output; ring, search: what it stands on
input       the bounded queue towards the guest
terminal    a real terminal in raw mode; keys: what detaches it; replay, screen: what it is shown, and left with
fds         descriptors that the loop watches; race: tasks of which one ends the others
backends    pty, unix socket, file, streams, terminal: `open_backend` picks one; client: the socket's other end
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.console.device import ByteDevice, ResizableDevice
from aiovmm.console.keys import DEFAULT_DETACH, format_keys, parse_keys
from aiovmm.console.reader import ConsoleReader
from aiovmm.console.search import Pattern
from aiovmm.console.stream import DEFAULT_HISTORY, Console
from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.console.backends import ConsoleBackend, open_backend
    from aiovmm.console.client import attach_socket
    from aiovmm.console.terminal import AttachEnd, Terminal
    from aiovmm.console.view import ConsoleView

__all__ = [
    "DEFAULT_DETACH",
    "DEFAULT_HISTORY",
    "AttachEnd",
    "ByteDevice",
    "Console",
    "ConsoleBackend",
    "ConsoleReader",
    "ConsoleView",
    "Pattern",
    "ResizableDevice",
    "Terminal",
    "attach_socket",
    "format_keys",
    "open_backend",
    "parse_keys",
]

__getattr__ = lazy_names(
    __name__,
    {
        "aiovmm.console.backends": "ConsoleBackend open_backend",
        "aiovmm.console.client": "attach_socket",
        "aiovmm.console.terminal": "AttachEnd Terminal",
        "aiovmm.console.view": "ConsoleView",
    },
)
