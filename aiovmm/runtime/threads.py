"""Names of threads, as the system's tools see them: Python gives its own to the system only since 3.14, and then their
beginnings; what tells the threads of a VM apart is the end: they are called "VM: what it does".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["name_this_thread", "system_name"]

_ROOM = 15  # bytes of a name (TASK_COMM_LEN)


def system_name(name: str) -> bytes:
    """What there is room for: what a thread does first, then as much of its VM's name as fits before it."""
    owner, _, what = name.rpartition(": ")
    room = max(_ROOM - 1 - len(what.encode()), 0)
    short = f"{owner.encode()[:room].decode(errors='ignore')} {what}".lstrip()
    return short.encode()[:_ROOM].decode(errors="ignore").encode()


def name_this_thread(name: str = "") -> None:
    """Have it called so, by Python and by the system; or by the system as it is by Python already."""
    thread = threading.current_thread()
    if name:
        thread.name = name
    set_system_name(system_name(thread.name))


def _write_name(name: bytes) -> None:
    with suppress(OSError):
        comm = os.open("/proc/thread-self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(comm, name)
        finally:
            os.close(comm)


set_system_name: Callable[[bytes], None] = _write_name
"""Of the calling thread; `native` puts what is faster here, once it is there."""
