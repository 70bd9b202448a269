"""Which pages of a mapping are in memory."""

from __future__ import annotations

import ctypes
import os
from mmap import PAGESIZE


def pages_there(address: int, size: int) -> int:
    """Pages of the mapping there that take memory (mincore(2)), be they mapped at the moment or not: the kernel takes some out of
    the page table to move them, or to see whether they are in use."""
    vector = ctypes.create_string_buffer(size // PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(byte & 1 for byte in vector.raw)
