"""Files of an image's layout by their names: of a directory, or of one tar archive, where they are read in their place."""

from __future__ import annotations

import os
import posixpath
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from aiovmm.errors import ImageError
from aiovmm.rootfs.tar import TarError, TarReader

__all__ = ["LARGEST_DOCUMENT", "Files", "FilesOfArchive", "FilesOfDirectory", "open_file", "read_document"]

LARGEST_DOCUMENT = 4 << 20  # bytes, as registries have it
_LINKS = 8  # to each other
_MOST_FILES = 1 << 16  # of an archive: there may be 1,000 layers of an image
_MOST_HEADERS = (
    64 << 20
)  # bytes of an archive's headers, which are read before an image is made by a process of its own
_LONGEST_NAME = 4096


class Files(Protocol):
    """Files of a layout by name; `open` gives the file, at its start, and its size."""

    def has(self, name: str) -> bool:
        """Whether there is such."""
        ...

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """Raises OSError, ImageError."""
        ...


class FilesOfDirectory:
    """Those below `root`, and no others, whatever documents call them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        """A file, or what is in its place."""
        return (self._root / name).exists()

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A regular file, be it through a link, but no FIFO, which would not answer."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ImageError(str(self._root), f"names a file outside of it, {name!r}")
        file = open_file(self._root / name)
        return file, os.fstat(file.fileno()).st_size


def open_file(path: Path) -> BinaryIO:
    """A regular file: nothing else answers at once. Raises OSError, ImageError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(str(path), "is not a file")
    return open(fd, "rb", buffering=0)


class FilesOfArchive:
    """Found once, by the archive's own headers; a blob is then read where it lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        with open_file(path) as file:
            reader = _Seeking(file)
            for number, member in enumerate(reader.tar):
                if number >= _MOST_FILES or len(member.path) > _LONGEST_NAME:
                    raise TarError(f"has more than {_MOST_FILES} files, or names, than a layout has")
                if reader.read > _MOST_HEADERS:
                    raise TarError(f"has more than {_MOST_HEADERS} bytes of headers, which are more than a layout has")
                name = os.fsdecode(member.path).removeprefix("./")
                if member.kind in ("link", "symlink"):  # a layer that is there twice
                    self._links[name] = _leads_to(name, member.kind, os.fsdecode(member.target))
                elif member.kind == "file":
                    self._places[name] = (reader.tar.offset, member.size)
                    reader.skip()

    def has(self, name: str) -> bool:
        """By its own name."""
        return name in self._places

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """Through links, which are names of the archive, too. Raises FileNotFoundError."""
        for _ in range(_LINKS):
            name = self._links.get(name, name)
        if name not in self._places:
            raise FileNotFoundError(2, os.strerror(2), name)
        offset, size = self._places[name]
        file = open_file(self._path)
        file.seek(offset)
        return file, size


def _leads_to(name: str, kind: str, target: str) -> str:
    """A name in the archive, whatever the link says: there is nothing else to be found."""
    place = target if kind == "link" else posixpath.join(posixpath.dirname(name), target)
    return posixpath.normpath(place).lstrip("/")


class _Seeking:
    """A tar reader that passes over content without reading it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._passed = 0
        self.tar = TarReader(file.read)

    @property
    def read(self) -> int:
        """Bytes that were."""
        return self.tar.offset - self._passed

    def skip(self) -> None:
        passed = self.tar.pass_over()
        self._passed += passed
        self._file.seek(passed, os.SEEK_CUR)


def read_document(path: Path, files: Files, name: str) -> bytes:
    """A small one. `path` is the layout's. Raises ImageError, OSError."""
    file, size = files.open(name)
    with file:
        if size > LARGEST_DOCUMENT:
            raise ImageError(str(path), f"{name} has {size} bytes")
        data = b""
        while len(data) < size and (more := file.read(size - len(data))):
            data += more
        return data
