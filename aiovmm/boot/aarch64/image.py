"""The header of an arm64 kernel Image, and the two wrappings it comes in: gzip and EFI zboot. Pure.

Sources: Documentation/arch/arm64/booting.rst; drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot.
"""

from __future__ import annotations

import struct

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.runtime.dataclass import dataclass

__all__ = ["HEADER_SIZE", "LARGEST", "BadImage", "ForeignImage", "ImageHeader", "Zboot", "find_zboot", "parse_header"]

LARGEST = 1 << 30
"""Bytes of a kernel, packed or not, in memory or in a file."""

_HEADER = struct.Struct("<8xQQQ24x4s4x")
HEADER_SIZE = _HEADER.size
_MAGIC = b"ARMd"
_OLD_TEXT_OFFSET = 0x80000  # of kernels before 3.17, whose image_size is 0
_OLD_ROOM = 16 << 20  # bytes for their .bss, whose size nobody tells

_ZBOOT = struct.Struct("<2s2x4sII8x32s4sI")
_DOS_MAGIC, _ZBOOT_MAGIC, _LINUX_PE_MAGIC, _PE_MAGIC = b"MZ", b"zimg", b"\xcd\x23\x82\x81", b"PE\0\0"
_PE_ARM64 = 0xAA64
_METHODS = {"gzip": "gzip", "lz4": "lz4", "lzma": "lzma", "xzkern": "xz", "zstd22": "zstd", "lzo": "lzo"}
"""What Kbuild calls its compressions, and what `boot.unpack` calls them."""


class BadImage(ValueError):
    """The file cannot be what its magic number says that it is; the message says why."""


class ForeignImage(BadImage):
    """It is one for another processor."""


@dataclass(frozen=True)
class ImageHeader:
    """What an Image says of itself: `size` is that in memory, .bss included (0: it does not say); `anywhere` that it need not
    be low in RAM; `page_size` in bytes, None where it does not say."""

    text_offset: int
    size: int
    big_endian: bool = False
    page_size: int | None = None
    anywhere: bool = True

    @property
    def address(self) -> int:
        """Where it is loaded and entered."""
        return layout.KERNEL_BASE + self.text_offset

    def room(self, file_size: int) -> int:
        """Bytes of memory from `address` on that an Image in a file of `file_size` bytes needs. The file may be larger than what
        it says: a signature may have been appended."""
        return max(self.size, file_size) if self.size else file_size + _OLD_ROOM


def parse_header(head: bytes) -> ImageHeader | None:
    """The header of an Image that begins with `head` (HEADER_SIZE bytes or more); None if it is none.

    Raises BadImage for one that no kernel can have.
    """
    if len(head) < HEADER_SIZE or head[0x38:0x3C] != _MAGIC:
        return None
    text_offset, size, flags, _ = _HEADER.unpack_from(head)
    if not size:
        return ImageHeader(_OLD_TEXT_OFFSET, 0, anywhere=False)
    if text_offset >= layout.KERNEL_ALIGNMENT or text_offset % layout.PAGE:
        raise BadImage(f"damaged: it is to be loaded {text_offset:#x} bytes above a boundary of 2 MiB")
    if size > LARGEST:
        raise BadImage(f"damaged: it says that it takes {size} bytes of memory; the limit is {LARGEST}")
    page_size = {1: 4096, 2: 16384, 3: 65536}.get(flags >> 1 & 3)
    return ImageHeader(text_offset, size, bool(flags & 1), page_size, bool(flags & 8))


@dataclass(frozen=True)
class Zboot:
    """An EFI program that unpacks the kernel in it: `size` bytes at `offset`; `compression` as `boot.unpack` names it."""

    offset: int
    size: int
    compression: str


def find_zboot(file: FileWindow) -> Zboot | None:
    """The kernel in an arm64 zboot image; None if `file` is none. Raises BadImage for one that is damaged or for another
    processor, HostError where the file cannot be read."""
    if file.size < _ZBOOT.size:
        return None
    dos, magic, offset, size, method, pe_magic, pe = _ZBOOT.unpack(file.part(0, _ZBOOT.size, "its header"))
    if dos != _DOS_MAGIC or magic != _ZBOOT_MAGIC:
        return None
    _check_machine(file, pe_magic, pe)
    if not 0 < size <= file.size - min(offset, file.size):
        raise BadImage(f"truncated: the kernel in it is {size} bytes at {offset:#x} of a file of {file.size}")
    name = method.split(b"\0")[0].decode("latin-1")
    if name not in _METHODS:
        raise BadImage(f"the kernel in it is packed by {name!r}, which is no known compression")
    return Zboot(offset, size, _METHODS[name])


def _check_machine(file: FileWindow, pe_magic: bytes, pe: int) -> None:
    try:
        signature, machine = struct.unpack("<4sH", file.part(pe, 6, "its PE header"))
    except OutsideFile as exc:
        raise BadImage(str(exc)) from exc
    if pe_magic == _LINUX_PE_MAGIC and signature == _PE_MAGIC and machine != _PE_ARM64:
        raise ForeignImage(f"an EFI zboot image for another processor (PE machine type {machine:#x})")
