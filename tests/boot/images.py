"""Small kernels, made here: ELF files with segments and notes, and bzImages around them in every compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import zstandard

LOAD, NOTE, DYNAMIC, INTERP, TLS = 1, 4, 2, 3, 7
KERNEL_ADDRESS = 0x1000000
CODE = bytes(range(256)) * 64  # 16 KiB that any decoder's mistake would show in


def _file_header(elf_class: int) -> struct.Struct:
    return struct.Struct("<16sHHIIIIIHHHHHH" if elf_class == 1 else "<16sHHIQQQIHHHHHH")


def _program_header(elf_class: int, kind: int, flags: int, *rest: int) -> bytes:
    """`rest`: offset, virtual and physical address, sizes in file and memory, alignment."""
    if elf_class == 1:
        return struct.pack("<8I", kind, *(value & 0xFFFFFFFF for value in rest[:5]), flags, rest[5])
    return struct.pack("<IIQQQQQQ", kind, flags, *rest)


def elf(
    segments: list[tuple[int, bytes, int]] | None = None,
    *,
    entry: int = KERNEL_ADDRESS + 0x40,
    pvh: int | None = None,
    virtual_offset: int = 0,
    machine: int | None = None,
    elf_class: int = 2,
    kind: int = 2,
    also: tuple[int, ...] = (),
) -> bytes:
    """An ELF file, of 32 bits for `elf_class` 1; `segments` are (physical address, content, size in memory); `also` are kinds
    of program headers that it has besides."""
    segments = segments if segments is not None else [(KERNEL_ADDRESS, CODE, len(CODE) + 0x3000)]
    note = b"" if pvh is None else struct.pack("<III4sI", 4, 4, 18, b"Xen\0", pvh)
    note = struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 7) + note if note else b""
    count = len(segments) + bool(note) + len(also)
    offset = 0x1000
    headers, body = [], bytearray()
    for address, content, memory in segments:
        at = offset + len(body)
        places = (at, address + virtual_offset, address, len(content), memory, 4096)
        headers.append(_program_header(elf_class, LOAD, 7, *places))
        body += content + bytes(-len(content) % 4096)
    if note:
        headers.append(_program_header(elf_class, NOTE, 4, offset + len(body), 0, 0, len(note), len(note), 4))
        body += note
    headers += [_program_header(elf_class, extra, 4, offset, 0, 0, 8, 8, 1) for extra in also]
    layout = _file_header(elf_class)
    size = len(_program_header(elf_class, 0, 0, *[0] * 6))
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    cpu = machine or (3 if elf_class == 1 else 62)
    header = layout.pack(ident, kind, cpu, 1, entry, layout.size, 0, 0, layout.size, size, count, 0, 0, 0)
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
    address: int = KERNEL_ADDRESS,
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
    struct.pack_into("<QI", setup, 0x258, address, init_size)
    setup[0x26C:0x270] = b"\xff\xff\xff\xff"  # not header any more: must not reach the zero page
    return bytes(setup + protected) + signature
