"""Small kernels, made here: ELF files with segments and notes, and bzImages around them in every compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

LOAD, NOTE, INTERP = 1, 4, 3
KERNEL_ADDRESS = 0x1000000
CODE = bytes(range(256)) * 64  # 16 KiB that any decoder's mistake would show in


def elf(
    segments: list[tuple[int, bytes, int]] | None = None,
    *,
    entry: int = KERNEL_ADDRESS + 0x40,
    pvh: int | None = None,
    virtual_offset: int = 0,
    machine: int = 62,
    elf_class: int = 2,
    kind: int = 2,
    interpreter: bool = False,
) -> bytes:
    """An ELF64 file; `segments` are (physical address, content, size in memory)."""
    segments = segments if segments is not None else [(KERNEL_ADDRESS, CODE, len(CODE) + 0x3000)]
    note = b"" if pvh is None else struct.pack("<III4sI", 4, 4, 18, b"Xen\0", pvh)
    note = struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 7) + note if note else b""
    count = len(segments) + bool(note) + interpreter
    offset = 0x1000
    headers, body = [], bytearray()
    for address, content, memory in segments:
        at = offset + len(body)
        headers.append(
            struct.pack("<IIQQQQQQ", LOAD, 7, at, address + virtual_offset, address, len(content), memory, 4096)
        )
        body += content + bytes(-len(content) % 4096)
    if note:
        headers.append(struct.pack("<IIQQQQQQ", NOTE, 4, offset + len(body), 0, 0, len(note), len(note), 4))
        body += note
    if interpreter:
        headers.append(struct.pack("<IIQQQQQQ", INTERP, 4, offset, 0, 0, 8, 8, 1))
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, kind, machine, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    head = header + b"".join(headers)
    return head + bytes(offset - len(head)) + bytes(body)


def lz4_legacy(data: bytes, block: int = 8 << 20) -> bytes:
    """What `lz4 -l` writes, and the kernel's build with it."""
    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), block):
        packed = lz4.block.compress(data[at : at + block], store_size=False)
        out += struct.pack("<I", len(packed)) + packed
    return out


def kernel_xz(data: bytes) -> bytes:
    """As scripts/xz_wrap.sh does for x86: branch filter, 32 MiB dictionary, CRC32."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": kernel_xz,
    "lz4": lz4_legacy,
    "zstd": lambda data: zstandard.ZstdCompressor(level=19, write_checksum=True).compress(data),
    "none": bytes,
}


def payload(vmlinux: bytes, compression: str) -> bytes:
    """The compressed vmlinux with its size appended, as the kernel's build does (gzip has it already)."""
    packed = COMPRESSORS[compression](vmlinux)
    return packed if compression == "gzip" else packed + struct.pack("<I", len(vmlinux))


def bzimage(
    packed: bytes,
    *,
    version: int = 0x20F,
    xloadflags: int = 0x7F,
    setup_sects: int = 3,
    initrd_max: int = 0x7FFFFFFF,
    cmdline_max: int = 2047,
    init_size: int = 0x100000,
    signature: bytes = b"a signature appended after the kernel",
) -> bytes:
    """A bzImage with `packed` as its payload (empty: a boot-protocol program without one)."""
    setup = bytearray((setup_sects + 1) * 512)
    protected = bytearray(0x240) + packed
    protected += bytes(-len(protected) % 16)
    setup[0x1F1] = setup_sects
    struct.pack_into("<I", setup, 0x1F4, len(protected) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"  # the jump's distance says where the header ends: 0x26C
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    struct.pack_into("<IBBH", setup, 0x230, 0x200000, 1, 21, xloadflags)
    struct.pack_into("<I", setup, 0x238, cmdline_max)
    struct.pack_into("<II", setup, 0x248, 0x240 if packed else 0, len(packed))
    struct.pack_into("<QI", setup, 0x258, KERNEL_ADDRESS, init_size)
    setup[0x26C:0x270] = b"\xff\xff\xff\xff"  # not header any more: must not reach the zero page
    return bytes(setup + protected) + signature
