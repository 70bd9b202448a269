"""Give up system calls (seccomp(2)), once everything is there that a guest is run with and before its first instruction.

The filter is our own: it is made in 0.3 ms of nothing but numbers that the compiler knows, where libseccomp and its binding would
have to be installed, loaded at each start, and told the same list of names.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from aiovmm import architecture
from aiovmm.confine.calls import ALLOWED, NOT_KNOWN
from aiovmm.confine.filter import JUDGED, make_filter, make_refusal
from aiovmm.errors import MORE_THREADS, HostError
from aiovmm.native import lib, owners
from aiovmm.runtime.threads import Thread

__all__ = ["confine_calls", "without_rings"]

T = TypeVar("T")
_INSTRUCTION = 8  # bytes


def confine_calls(*, log: bool = False, families: Sequence[int] = (socket.AF_UNIX,)) -> None:
    """All threads of this process, for good: no program and no process is started any more, no socket opened that is not of
    `families`, and signals go to itself, and its children only. With `log` nothing is refused, but told to the kernel's
    log. Raises HostError, with nothing changed but that what is executed cannot gain rights."""
    own, children = os.getpid(), _children()
    numbers = {n: getattr(lib, f"SYS_{n}") for n in (*ALLOWED, *NOT_KNOWN, *JUDGED) if hasattr(lib, f"SYS_{n}")}
    code = make_filter(numbers, architecture.host().audit, families=families, signals_to=(own, *children), log=log)
    _filter(code, of_all=True)


def without_rings(make: Callable[[], T]) -> T:
    """What `make` returns, called where the kernel has no io_uring, in a thread of its own that has ended then. An event loop of
    uvloop's has a ring, by which whoever takes over the process could open any socket; without one it serves as well. Raises
    HostError, and what `make` raises."""
    made: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _filter(make_refusal(lib.SYS_io_uring_setup, architecture.host().audit), of_all=False)
            made.append(make())
        except BaseException as exc:
            failed.append(exc)

    thread = Thread(run, name="loop")
    try:
        thread.start()
    except RuntimeError:
        raise HostError("start a thread", errno.EAGAIN, MORE_THREADS) from None
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):  # the kernel has it for a moment longer
        os.sched_yield()
    if failed:
        raise failed[0]
    return made[0]


def _filter(code: bytes, *, of_all: bool) -> None:
    _check(lib.avmm_no_new_privileges())
    _check(lib.avmm_filter_calls(owners.view(code), len(code) // _INSTRUCTION, of_all))


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
