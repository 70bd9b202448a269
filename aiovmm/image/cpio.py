"""A deterministic writer of cpio archives in the "newc" format, as the kernel unpacks them. Pure.

Source: Documentation/driver-api/early-userspace/buffer-format.rst. Entries are sorted by path, parents are made as needed,
owners are root, times are zero and inode numbers count up, so that equal content gives equal bytes; device nodes are mere
records, so no privilege is needed.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from aiovmm.errors import UsageError

__all__ = ["CpioArchive", "CpioEntry"]

_TRAILER = "TRAILER!!!"
_BLOCK = 512  # archives are padded to it, as GNU cpio does
_LONGEST_PATH = 4095  # bytes: the kernel leaves out members with longer ones, and links to longer ones (PATH_MAX)
_LONGEST_NAME = 255  # bytes, likewise (NAME_MAX)
_LARGEST_FILE = 0xFFFFFFFF  # c_filesize has eight hexadecimal digits


@dataclass(frozen=True)
class CpioEntry:
    """One member: `mode` with its type bits; `data` is a file's content or a symlink's target; `device` (major, minor)."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class CpioArchive:
    """Members by path, and the bytes made of them."""

    def __init__(self) -> None:
        self._entries: dict[str, CpioEntry] = {}

    def __contains__(self, path: str) -> bool:
        return _normal(path) in self._entries

    @property
    def paths(self) -> tuple[str, ...]:
        """Members' paths, without a leading slash, in archive order."""
        return tuple(sorted(self._entries))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory; its parents come by themselves."""
        self._add(path, CpioEntry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file. Raises UsageError for one of 4 GiB or more."""
        if len(data) > _LARGEST_FILE:
            raise UsageError(f"{path}: {len(data)} bytes do not fit into a cpio archive")
        self._add(path, CpioEntry(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link to `target`. Raises UsageError for what cannot be a path."""
        data = _bytes(target)
        if not 0 < len(data) <= _LONGEST_PATH or b"\0" in data:
            raise UsageError(f"{path}: a symbolic link to {len(data)} bytes that cannot be a path")
        self._add(path, CpioEntry(stat.S_IFLNK | 0o777, data))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._add(path, CpioEntry(stat.S_IFCHR | mode, device=(major, minor)))

    def build(self) -> bytes:
        """The archive."""
        out = bytearray()
        for inode, path in enumerate(self.paths, start=1):
            _append(out, inode, path, self._entries[path])
        _append(out, 0, _TRAILER, CpioEntry(0))
        out += bytes(-len(out) % _BLOCK)
        return bytes(out)

    def _add(self, path: str, entry: CpioEntry) -> None:
        name = _normal(path)
        parent, slash, _ = name.rpartition("/")
        if slash:
            above = self._entries.get(parent)
            if above is None:
                self.directory(parent)
            elif not stat.S_ISDIR(above.mode):
                raise UsageError(f"{path}: {parent} in the archive is not a directory")
        self._entries[name] = entry


def _normal(path: str) -> str:
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        raise UsageError(f"not a path for a file in an archive: {path!r}")
    name = "/".join(parts)
    if name == _TRAILER:
        raise UsageError(f"no file in an archive can be called {name!r}, which says that the archive ends")
    if (size := len(_bytes(name))) > _LONGEST_PATH:
        raise UsageError(f"a path of {size} bytes is too long for a file in an archive")
    if (size := max(len(_bytes(part)) for part in parts)) > _LONGEST_NAME:
        raise UsageError(f"a name of {size} bytes is too long for a file in an archive")
    return name


def _bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def _append(out: bytearray, inode: int, path: str, entry: CpioEntry) -> None:
    name = _bytes(path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    out += b"070701" + b"".join(b"%08X" % f for f in fields)
    out += name
    out += bytes(-len(out) % 4)
    out += entry.data
    out += bytes(-len(out) % 4)
