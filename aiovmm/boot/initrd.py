"""What a kernel finds its first root in: bytes, or a file that is read straight into guest memory."""

from __future__ import annotations

import os

from aiovmm.boot.source import BytesSource, FileSource, Source
from aiovmm.errors import ImageError

__all__ = ["Initrd", "initrd_source"]

Initrd = bytes | bytearray | memoryview | str | os.PathLike[str]


def initrd_source(initrd: Initrd) -> tuple[Source, str]:
    """Its bytes, and what errors call it. Raises ImageError if it is empty, or a path with no readable file."""
    if isinstance(initrd, (str, os.PathLike)):
        return FileSource.at(initrd, "initramfs"), os.fspath(initrd)
    if not len(initrd):
        raise ImageError("initramfs", "is empty")
    return BytesSource(initrd), "initramfs"
