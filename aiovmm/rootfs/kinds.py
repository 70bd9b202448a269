"""What a path is that nobody has said it of."""

from __future__ import annotations

import io
import re
import time
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from aiovmm.errors import ImageError
from aiovmm.rootfs.streams import EXPANDING_ERRORS, expanded
from aiovmm.rootfs.tar import TarError, TarReader

__all__ = ["file_system_of", "kind_of"]

_MAGICS = ((1024, b"\xe2\xe1\xf5\xe0", "erofs"), (1080, b"\x53\xef", "ext4"), (0, b"hsqs", "squashfs"))
_OF_LAYOUTS = (b"oci-layout", b"index.json", b"blobs")
_OF_SAVED = re.compile(rb"[0-9a-f]{64}(\.tar|\.json)?")
"""Layers and configurations that `docker save` and skopeo write: they come first."""
_SMALL = (
    1 << 20
)  # bytes of a first member that may come before one that tells more: what it unpacks to may be terabytes

_STORED = 4 << 20  # bytes of a file that are looked at for that: any number of them may unpack to nothing,
_SECONDS = 1.0  # and take a processor seconds


def kind_of(path: Path) -> str:
    """oci, directory, file_system or tar. Blocking. Raises ImageError."""
    try:
        if path.is_dir():
            return "oci" if (path / "oci-layout").exists() or (path / "index.json").exists() else "directory"
        if _file_system(path):
            return "file_system"
        return "oci" if _is_layout(path) else "tar"
    except OSError as exc:
        raise ImageError(str(path), f"cannot be read: {exc.strerror}", "give a directory or a file") from exc


def file_system_of(path: Path) -> str:
    """erofs, ext4 or squashfs. Raises ImageError."""
    try:
        found = _file_system(path)
    except OSError as exc:
        raise ImageError(str(path), f"cannot be read: {exc.strerror}") from exc
    if not found:
        raise ImageError(str(path), "is no file system that is known here", "EROFS, ext4 and squashfs are")
    return found


def _file_system(path: Path) -> str:
    if not (path.is_file() or path.is_block_device()):
        path.stat()  # raises, if it is not there
        raise ImageError(str(path), "is neither a file nor a directory")  # a FIFO would not answer
    with open(path, "rb") as file:
        head = file.read(4096)
    return next((name for at, magic, name in _MAGICS if head[at:].startswith(magic)), "")


def _is_layout(path: Path) -> bool:
    """By the first names in the archive."""
    with open(path, "rb") as file:
        try:
            for member in islice(TarReader(expanded(_Bounded(file)).read), 2):
                first = member.path.removeprefix(b"./").split(b"/")[0]
                if first in _OF_LAYOUTS or _OF_SAVED.fullmatch(first):
                    return True
                if member.size > _SMALL:
                    return False
        except (TarError, *EXPANDING_ERRORS, OSError, MemoryError):  # told when it is made into an image
            return False
    return False


class _Bounded(io.RawIOBase):
    """What is looked at of a file: `_STORED` bytes of it, as far as one comes in `_SECONDS` of this thread's. Others want to run
    meanwhile, and a name in gzip's header is read byte by byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _STORED
        self._until = time.thread_time() + _SECONDS

    def readable(self) -> bool:
        """True: see io.RawIOBase."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Raises EOFError at the end of the time."""
        if time.thread_time() > self._until:
            raise EOFError("it takes too long to be looked at")
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
