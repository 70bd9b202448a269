"""Kernels for the guests of this host, whatever its architecture. Nobody else here asks for a room."""

from __future__ import annotations

import os
from typing import Protocol

from aiovmm import architecture
from aiovmm.boot.source import FileIdentity, FileSource, Source
from aiovmm.memory import GuestMemory
from aiovmm.runtime.prepared import Prepared

__all__ = ["KernelImage", "load_kernel", "was_loaded"]


class KernelImage(Protocol):
    """A kernel that can be loaded, into any number of guests. Holds no file open."""

    @property
    def path(self) -> str:
        """Its file."""

    @property
    def source(self) -> Source:
        """Where its bytes are."""

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
    key = (os.fspath(path), _identity(path), unpack)
    image = _examined.find(key)
    if image is None:
        image = _load(path, cache, unpack)
        if (
            isinstance(image.source, FileSource) and image.source.identity == key[1]
        ):  # and not one that it was unpacked into
            _examined.keep(key, image)
        _loaded.keep(key[0], True)
    return image


def was_loaded(path: str | os.PathLike[str]) -> bool:
    """Whether there was a kernel at `path`, not long ago: to load it will be quick."""
    return bool(_loaded.find(os.fspath(path)))


_examined: Prepared[KernelImage] = Prepared(64)
_loaded: Prepared[bool] = Prepared(64)  # by path


def _identity(path: str | os.PathLike[str]) -> FileIdentity | None:
    try:
        return FileIdentity.of(os.stat(path))
    except (OSError, ValueError):  # who opens it says what is wrong
        return None


def _load(path: str | os.PathLike[str], cache: str | os.PathLike[str] | None, unpack: bool) -> KernelImage:
    match architecture.host():
        case architecture.X86_64:
            from aiovmm.boot import x86_64

            return x86_64.load_kernel(path, cache=cache, unpack=unpack)
        case _:  # there are two
            from aiovmm.boot import aarch64

            return aarch64.load_kernel(path, cache=cache, unpack=unpack)
