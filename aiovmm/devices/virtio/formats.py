"""Disk image formats by what their files begin with, or end with.

A file in such a format is no raw image: taken for one, the guest sees the format's tables in its sectors, and writes over them.
The other way round, a guest that writes such a beginning into a raw image chooses what the next program that looks at it makes
of it, a file of the host's included: one that a qcow2 image is backed by, or that a VMDK descriptor, which is text, says the data
is in. Magic numbers: QEMU's docs/interop/qcow2.txt and qed_spec.txt; [MS-VHDX] 2.2.1; Microsoft's VHD specification 1.0; VMware's
Virtual Disk Format 1.1; VirtualBox, Parallels and Bochs as QEMU reads them, and VMDK descriptors as QEMU and VirtualBox do.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
from io import FileIO
from typing import NamedTuple

from aiovmm.errors import ImageError

__all__ = [
    "HEADERS",
    "OVERLAY",
    "SECTOR",
    "Header",
    "Place",
    "format_of",
    "format_of_file",
    "format_of_open_file",
    "last_sector",
    "open_file",
    "open_image",
]

SECTOR = 512
"""Bytes of the beginning, and of the end, that are looked at."""


OVERLAY = "copy-on-write overlay"
"""Of aiovmm, which knows what to do with it."""


class Place(enum.IntEnum):
    """Where a magic is looked for; enum avmm_blk_place."""

    FIRST = 0  # in the first sector
    AFTER_COMMENTS = 1  # there, after lines that are blank or begin with #
    LAST = 2  # in the last sector


class Header(NamedTuple):
    """`magic`, `offset` bytes into its `place`, makes a file one of `format`."""

    format: str
    magic: bytes
    offset: int = 0
    place: Place = Place.FIRST


HEADERS = (
    Header("qcow2", b"QFI\xfb"),
    Header("QED", b"QED\0"),
    Header("VHDX", b"vhdxfile"),
    Header("VHD", b"conectix"),  # a dynamic one has a copy of its footer in front
    Header("VHD", b"conectix", place=Place.LAST),
    Header("VMDK", b"KDMV"),
    Header("VMDK", b"COWD"),
    Header("VMDK", b"version=", place=Place.AFTER_COMMENTS),
    Header("VMDK", b"# Disk Descriptor"),
    Header("VMDK", b"#Disk Descriptor"),
    Header("VDI", b"\x7f\x10\xda\xbe", 64),
    Header("Parallels", b"WithoutFreeSpace"),
    Header("Parallels", b"WithouFreSpacExt"),
    Header("Bochs", b"Bochs Virtual HD Image"),
    Header(OVERLAY, b"aiovmmOV"),  # blk/overlay/header.py
)
"""What the first or the last sector of an image that is not raw has."""

_COMMENTS = re.compile(rb"(?:#[^\n]*\n|[ \r]*\n)*")


def format_of_file(path: str | os.PathLike[str]) -> str | None:
    """The same of a file or block device. Raises OSError; may block."""
    with open_file(path) as file:
        return format_of_open_file(file)


def format_of_open_file(file: FileIO) -> str | None:
    """The same of one that was just opened."""
    first = file.read(SECTOR)
    file.seek(last_sector(file.seek(0, os.SEEK_END)))
    return format_of(first, file.read(SECTOR))


def open_image(path: str | os.PathLike[str], flags: int) -> int:
    """A descriptor of a file or block device. It is looked at before, since opening a device may do something, and again once it
    is open: by then there may be another thing, as a FIFO, which would have us wait for somebody. Raises ImageError for what is
    neither, OSError."""
    _check_kind(path, os.stat(path))
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check_kind(path, os.fstat(fd))
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_kind(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise ImageError(os.fspath(path), "is neither a file nor a block device")


def open_file(path: str | os.PathLike[str]) -> FileIO:
    """A file or block device, to be read; never what would have it wait for another, as a FIFO does. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is neither a file nor a block device", os.fspath(path))
    return FileIO(fd, "rb")


def last_sector(size: int) -> int:
    """Where the last sector of a file of `size` bytes begins, of which it may have only a part."""
    return max(0, size - 1) // SECTOR * SECTOR


def format_of(first: bytes, last: bytes = b"") -> str | None:
    """The format of a file by its first and its last sector; None if it is none of these, raw then."""
    comments = _COMMENTS.match(first[:SECTOR])
    assert comments is not None, "which may be empty"
    for header in HEADERS:
        sector = last if header.place is Place.LAST else first
        at = comments.end() if header.place is Place.AFTER_COMMENTS else header.offset
        if sector[at:SECTOR].startswith(header.magic):
            return header.format
    return None
