"""The setup header of a bzImage and the zero page (`struct boot_params`) made from it. Pure.

Source: Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst of Linux; <asm/bootparam.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiovmm.boot.x86_64.e820 import E820Entry
from aiovmm.runtime.dataclass import dataclass

__all__ = ["HEADER_OFFSET", "PARAGRAPH", "SetupHeader", "zero_page"]

HEADER_OFFSET = 0x1F1
BOOT_FLAG, HEADER_MAGIC = 0xAA55, b"HdrS"
XLF_KERNEL_64, XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 0, 1 << 1
PARAGRAPH = 16
"""Bytes: the unit of `syssize`, to which sizes are rounded up."""
LOADED_HIGH, KASLR_FLAG = 1 << 0, 1 << 1
_TYPE_OF_LOADER = 0xFF  # "undefined": a loader with no assigned number
_E820_TABLE, _E820_MAX = 0x2D0, 128
_HEADER_END_MAX = 0x290  # where boot_params reserves the header's room to end
_VERSION_64BIT = 0x20C  # xloadflags came with 2.12
_SYNTHETIC_VERSION = 0x20F
_INITRD_MAX_DEFAULT = 0x7FFFFFFF
_SINCE = {0x22C: 0x203, 0x238: 0x206, 0x248: 0x208, 0x24C: 0x208, 0x258: 0x20A, 0x260: 0x20A, 0x236: _VERSION_64BIT}
"""Protocol versions that brought fields in. What an older header has in their place is anything, text of a loader's say."""


@dataclass(frozen=True)
class SetupHeader:
    """The setup header as it stands in the image, from offset 0x1F1 to its end; offsets in `u8..u64` are the image's."""

    raw: bytes

    @classmethod
    def synthetic(cls) -> SetupHeader:
        """What a kernel that is entered directly (a bare vmlinux) reads of a header that it does not have."""
        raw = bytearray(0x26C - HEADER_OFFSET)
        header = cls(bytes(raw))
        header = header.with_field(0x1FE, "<H", BOOT_FLAG).with_field(0x206, "<H", _SYNTHETIC_VERSION)
        header = header.with_field(0x202, "<I", int.from_bytes(HEADER_MAGIC, "little"))
        header = header.with_field(0x211, "<B", LOADED_HIGH).with_field(0x230, "<I", 0x1000000)
        header = header.with_field(0x236, "<H", XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G)
        return header.with_field(0x22C, "<I", _INITRD_MAX_DEFAULT).with_field(0x238, "<I", 2047)

    def field(self, offset: int, fmt: str) -> int:
        """The field at image offset `offset`; 0 where it is of a later protocol, or the header ends before it."""
        start = offset - HEADER_OFFSET
        if start + struct.calcsize(fmt) > len(self.raw) or (offset in _SINCE and self.version < _SINCE[offset]):
            return 0
        return int(struct.unpack_from(fmt, self.raw, start)[0])

    def with_field(self, offset: int, fmt: str, value: int) -> SetupHeader:
        """A header with one field changed."""
        raw = bytearray(self.raw)
        struct.pack_into(fmt, raw, offset - HEADER_OFFSET, value)
        return SetupHeader(bytes(raw))

    @property
    def setup_size(self) -> int:
        """Bytes of boot sector and real-mode code before the protected-mode kernel."""
        return ((self.field(0x1F1, "<B") or 4) + 1) * 512

    @property
    def protected_size(self) -> int:
        """Bytes of the protected-mode kernel that follows, rounded up to a paragraph (`syssize`): the file may end before."""
        return self.field(0x1F4, "<I") * PARAGRAPH

    @property
    def version(self) -> int:
        """Of the boot protocol, 0x020c for 2.12."""
        return self.field(0x206, "<H")

    @property
    def is_64bit(self) -> bool:
        """Has the 64-bit entry point at 0x200 of the protected-mode kernel (XLF_KERNEL_64)."""
        return bool(self.field(0x236, "<H") & XLF_KERNEL_64)

    @property
    def above_4g(self) -> bool:
        """Finds an initrd above 4 GiB, too."""
        return bool(self.field(0x236, "<H") & XLF_CAN_BE_LOADED_ABOVE_4G)

    @property
    def payload(self) -> tuple[int, int]:
        """(offset, length) of the compressed vmlinux in the file; length 0 if there is none. Protocol 2.08."""
        return self.setup_size + self.field(0x248, "<I"), self.field(0x24C, "<I")

    @property
    def cmdline_max(self) -> int:
        """Longest command line in bytes without its NUL. Before protocol 2.06 it was 255."""
        return self.field(0x238, "<I") or 255

    @property
    def initrd_max(self) -> int:
        """Highest address that the initrd's last byte may have. Before protocol 2.03 it was 0x37FFFFFF."""
        return self.field(0x22C, "<I") or 0x37FFFFFF

    @property
    def pref_address(self) -> int:
        """Where the kernel would rather lie."""
        return self.field(0x258, "<Q")

    @property
    def init_size(self) -> int:
        """Bytes that the kernel needs from its load address on until it can read its memory map."""
        return self.field(0x260, "<I")


def zero_page(
    header: SetupHeader,
    *,
    cmdline: int,
    initrd: tuple[int, int] | None,
    e820: Sequence[E820Entry],
    rsdp: int,
) -> bytes:
    """4096 bytes of boot_params. `cmdline` and `rsdp` are addresses (0: none), `initrd` is (gpa, size)."""
    if len(e820) > _E820_MAX:
        raise ValueError(f"{len(e820)} e820 entries; the zero page holds {_E820_MAX}")
    page = bytearray(4096)
    raw = header.raw[: _HEADER_END_MAX - HEADER_OFFSET]
    page[HEADER_OFFSET : HEADER_OFFSET + len(raw)] = raw
    struct.pack_into("<Q", page, 0x070, rsdp)
    struct.pack_into("<B", page, 0x1E8, len(e820))
    struct.pack_into("<B", page, 0x210, _TYPE_OF_LOADER)
    struct.pack_into("<I", page, 0x228, cmdline & 0xFFFFFFFF)
    struct.pack_into("<I", page, 0x0C8, cmdline >> 32)
    if initrd is not None:
        struct.pack_into("<II", page, 0x218, initrd[0] & 0xFFFFFFFF, initrd[1] & 0xFFFFFFFF)
        struct.pack_into("<II", page, 0x0C0, initrd[0] >> 32, initrd[1] >> 32)
    for i, entry in enumerate(e820):
        struct.pack_into("<QQI", page, _E820_TABLE + i * 20, entry.address, entry.size, entry.type)
    return bytes(page)
