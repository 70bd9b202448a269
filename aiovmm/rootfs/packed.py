"""A layout in one archive that was compressed as a whole, as `docker save IMAGE | gzip` has it. Its manifest comes last and its
layers in any order, so that it is unpacked, once, to a file without a name: gone with who reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from aiovmm.errors import ImageError
from aiovmm.rootfs.layout import open_file
from aiovmm.rootfs.streams import EXPANDING_ERRORS, Readable, expanded, is_packed

__all__ = ["is_packed_file", "unpacked"]

_PART = 1 << 20
_MAGIC = 6  # bytes
_BESIDES = 16 << 20  # bytes of documents, headers and padding


def is_packed_file(path: Path) -> bool:
    """Raises OSError, ImageError."""
    with open_file(path) as file:
        return is_packed(file.read(_MAGIC))


@contextmanager
def unpacked(path: Path, folder: Path, most: int) -> Iterator[Path]:
    """Where the archive is as it was before, in `folder` unless that is `path` itself. `most`: bytes of the files of its image;
    of layers that take some of each other away there may be some more. Raises ImageError, OSError."""
    with open_file(path) as file:
        if not is_packed(file.read(_MAGIC)):
            yield path
            return
        file.seek(0)
        with TemporaryFile(dir=folder, buffering=0) as out:
            try:
                for part in _parts(path, expanded(file), most + most // 16 + _BESIDES):
                    out.write(part)
            except EXPANDING_ERRORS as exc:
                raise ImageError(str(path), f"cannot be unpacked: {exc}") from exc
            yield Path(f"/proc/self/fd/{out.fileno()}")


def _parts(path: Path, source: Readable, most: int) -> Iterator[bytes]:
    left = most
    while part := source.read(_PART):
        left -= len(part)
        if left < 0:
            raise ImageError(str(path), f"is more than {most} bytes when it is unpacked")
        yield part
