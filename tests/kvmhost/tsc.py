"""How fast this machine's time stamp counter runs, which is what QEMU's TCG gives the processors that it emulates.

A kernel finds that out by a timer of 50 ms. In an emulator that has to wait for a processor meanwhile it gets it wrong, by a
factor of three if it comes to that: its clock then runs so much faster, and with it every limit of time in there.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import cache
from statistics import median

__all__ = ["kernel_argument", "khz"]

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_SECONDS = 0.05
_TIMES, _LOOKS = 5, 50


def kernel_argument(arch: str) -> str:
    """What the kernel of a nested host of that architecture is told; nothing where it does not measure, or we cannot."""
    return f"tsc_early_khz={khz()}" if arch == "x86_64" == platform.machine() else ""


@cache
def khz() -> int:
    """On x86-64 alone."""
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as code:
        code.write(_RDTSC)
        place = ctypes.c_char.from_buffer(code)
        counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
        found = [_measured(counter) for _ in range(_TIMES)]
        del place
    return round(median(found) * 1e6)


def _measured(counter: Callable[[], int]) -> float:
    """Ticks a nanosecond."""
    began = _both(counter)
    time.sleep(_SECONDS)
    ended = _both(counter)
    return (ended[1] - began[1]) / (ended[0] - began[0])


def _both(counter: Callable[[], int]) -> tuple[float, int]:
    """The time in nanoseconds and the counter, of the look that nothing came between."""
    looks = []
    for _ in range(_LOOKS):
        before = time.monotonic_ns()
        ticks = counter()
        after = time.monotonic_ns()
        looks.append((after - before, (before + after) / 2, ticks))
    return min(looks)[1:]
