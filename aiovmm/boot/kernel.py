"""Kernels for the guests of this host, whatever its architecture. Nobody else here asks for a room."""

from __future__ import annotations

import os
from typing import Protocol

from aiovmm import architecture
from aiovmm.memory import GuestMemory

__all__ = ["KernelImage", "load_kernel"]


class KernelImage(Protocol):
    """A kernel that can be loaded, into any number of guests. Holds no file open."""

    @property
    def path(self) -> str:
        """Its file."""

    def load_into(self, memory: GuestMemory, *, fresh: bool = True) -> object:
        """Put it into `memory`; with `fresh` its RAM must still be all zero. Raises ImageError if the kernel does not fit, or if
        the file has changed since it was examined."""


def load_kernel(
    path: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None, unpack: bool = True
) -> KernelImage:
    """Examine the kernel at `path`, and unpack it through the cache directory `cache` (default: the user's own).

    Blocking: a first start of a compressed kernel takes some 0.2-2 s, a warm one well under a millisecond.
    Raises ImageError for anything that is not a kernel for this host's guests, with what it is where that can be told.
    """
    match architecture.host():
        case architecture.X86_64:
            from aiovmm.boot import x86_64

            return x86_64.load_kernel(path, cache=cache, unpack=unpack)
        case _:  # there are two
            from aiovmm.boot import aarch64

            return aarch64.load_kernel(path, cache=cache, unpack=unpack)
