"""Disk image formats by what their files begin with, or end with. Pure.

A file in such a format is no raw image: taken for one, the guest sees the format's tables in its sectors, and writes over them.
The other way round, a guest that writes such a beginning into a raw image chooses what the next program that looks at it makes
of it, a backing file of the host's included. Magic numbers: QEMU's docs/interop/qcow2.txt and qed_spec.txt; [MS-VHDX] 2.2.1;
Microsoft's VHD specification 1.0; VMware's Virtual Disk Format 1.1; VirtualBox and Parallels as QEMU reads them.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HEADERS", "HEAD_SIZE", "Header", "format_of"]

HEAD_SIZE = 512
"""Bytes of the beginning, and of the end, that are looked at."""


class Header(NamedTuple):
    """`magic` at `offset` makes a file one of `format`."""

    format: str
    magic: bytes
    offset: int = 0


_FOOTER = Header("VHD", b"conectix")
HEADERS = (
    Header("qcow2", b"QFI\xfb"),
    Header("QED", b"QED\0"),
    Header("VHDX", b"vhdxfile"),
    _FOOTER,  # a dynamic one has a copy of its footer in front
    Header("VMDK", b"KDMV"),
    Header("VMDK", b"COWD"),
    Header("VMDK", b"# Disk DescriptorFile"),
    Header("VDI", b"\x7f\x10\xda\xbe", 64),
    Header("Parallels", b"WithoutFreeSpace"),
    Header("Parallels", b"WithouFreSpacExt"),
)
"""What sector 0 of an image that is not raw begins with."""


def format_of(head: bytes, tail: bytes = b"") -> str | None:
    """The format of a file by its first and its last sector; None if it is none of these, raw then."""
    for header in HEADERS:
        if head[header.offset :].startswith(header.magic):
            return header.format
    return _FOOTER.format if tail.startswith(_FOOTER.magic) else None
