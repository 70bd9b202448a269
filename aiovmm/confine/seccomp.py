"""Give up system calls (seccomp(2)), once everything is there that a guest is run with and before its first instruction.

The filter is our own: it is made in 0.3 ms of nothing but numbers that the compiler knows, where libseccomp and its binding would
have to be installed, loaded at each start, and told the same list of names.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from aiovmm import architecture
from aiovmm.confine.calls import ALLOWED, NOT_KNOWN
from aiovmm.confine.filter import make_filter
from aiovmm.errors import HostError
from aiovmm.native import lib, owners

__all__ = ["confine_calls"]

_JUDGED = ("ioctl", "socket", "clone", "kill", "tgkill", "prlimit64")
_INSTRUCTION = 8  # bytes


def confine_calls(*, log: bool = False, families: Sequence[int] = (socket.AF_UNIX,)) -> None:
    """All threads of this process, for good: no program and no process is started any more, no socket opened that is not of
    `families`, and signals go to itself, its group and its children only. With `log` nothing is refused, but told to the kernel's
    log. Raises HostError, with nothing changed but that what is executed cannot gain rights."""
    own, children = os.getpid(), _children()
    numbers = {n: getattr(lib, f"SYS_{n}") for n in (*ALLOWED, *NOT_KNOWN, *_JUDGED) if hasattr(lib, f"SYS_{n}")}
    code = make_filter(numbers, architecture.host().audit, families=families, signals_to=(own, 0, *children), log=log)
    _check(lib.avmm_no_new_privileges())
    _check(lib.avmm_filter_calls(owners.view(code), len(code) // _INSTRUCTION))


def _children() -> list[int]:
    """Helper processes that were started for its devices."""
    try:
        found = [task.read_text() for task in Path("/proc/self/task").glob("*/children")]
    except OSError:  # a kernel without that file
        return []
    return [int(pid) for text in found for pid in text.split()]


def _check(result: int) -> None:
    if result < 0:
        raise HostError("filter system calls", -result, "this kernel cannot: turn seccomp off to do without")
