"""Small arm64 kernels, made here: Images, and what they come packed in."""

from __future__ import annotations

import struct

from tests.boot.images import CODE, COMPRESSORS

ADDRESS = 0x40200000
"""Where an Image with no text_offset goes."""


def image(
    body: bytes = CODE,
    *,
    text_offset: int = 0,
    size: int | None = None,
    flags: int = 0b1010,
    magic: bytes = b"ARMd",
) -> bytes:
    """An Image of a header and `body`; `size` in memory, by default with 12 KiB of .bss."""
    size = 64 + len(body) + 0x3000 if size is None else size
    header = struct.pack("<II3Q24x4sI", 0xFA405A4D, 0x14000000, text_offset, size, flags, magic, 0)
    return header + body


NAMES = {"gzip": "gzip", "lz4": "lz4", "lzma": "lzma", "xz": "xzkern", "zstd": "zstd22"}
"""What zboot calls a compression."""


def zboot(
    kernel: bytes,
    compression: str = "gzip",
    *,
    name: str | None = None,
    machine: int = 0xAA64,
    offset: int | None = None,
    size: int | None = None,
) -> bytes:
    """An EFI program with `kernel` in it, as Makefile.zboot makes it: the unpacked size follows what is packed, uncounted."""
    packed = COMPRESSORS[compression](kernel)
    pe = struct.pack("<4sHHIIIHH", b"PE\0\0", machine, 2, 0, 0, 0, 160, 0x206)
    start = 0x1000
    header = struct.pack(
        "<2s2x4sII8x32s4sI",
        b"MZ",
        b"zimg",
        start if offset is None else offset,
        len(packed) if size is None else size,
        (name or NAMES[compression]).encode(),
        b"\xcd\x23\x82\x81",
        64,
    )
    head = header + pe
    tail = b"" if compression == "gzip" else struct.pack("<I", len(kernel))
    return head + bytes(start - len(head)) + packed + tail + bytes(512)
