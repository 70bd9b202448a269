"""A writer of initramfs archives: cpio's "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file, directory (mode with S_IFDIR, no data) or symlink (S_IFLNK, the target as data) at `path`."""

    path: str
    mode: int
    data: bytes = b""


def file(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    return Entry(path, stat.S_IFREG | permissions, data)


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def archive(entries: list[Entry]) -> bytes:
    """The archive of `entries`, owned by root, dated 1970: the same entries give the same bytes."""
    members = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join(members) + _member(0, Entry("TRAILER!!!", 0))


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
