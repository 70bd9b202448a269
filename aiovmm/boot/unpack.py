"""Decompress the payload of a bzImage: every format Linux offers except LZO, for which no kept Python library exists. Pure.

The payload is the compressed vmlinux with the uncompressed size appended as 4 bytes, little-endian; a gzip stream ends in
just that by itself (Documentation/arch/x86/boot.rst, payload_offset; scripts/Makefile.lib, size_append).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from aiovmm.boot.elf import ELF_MAGIC

__all__ = ["UnpackError", "begin", "detect", "expand", "unpack"]

_LARGEST = 1 << 30  # bytes; a damaged size field must not make us allocate without bound
_LZ4_BLOCK = 8 << 20  # the legacy frame's fixed block size (lz4 doc/lz4_Frame_format.md, "Legacy frame")
_LZMA_MEMORY = 1 << 28  # bytes; the kernel's build uses dictionaries of up to 64 MiB
_ZSTD_WINDOW = 1 << 27  # what `zstd -22 --ultra` of the kernel build needs
_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\xfd7zXZ\x00": "xz",
    b"\x89LZO": "lzo",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
    ELF_MAGIC: "none",
}


class UnpackError(ValueError):
    """The payload cannot be decompressed; the message says why."""


def detect(payload: bytes) -> str | None:
    """The name of the compression that `payload` begins with ("none" for a bare ELF file), or None."""
    return next((name for magic, name in _MAGICS.items() if payload.startswith(magic)), None)


def unpack(payload: bytes) -> bytes:
    """The vmlinux in `payload`. Raises UnpackError if it is damaged, cut short, or in a format that is not supported."""
    name = detect(payload)
    if name is None:
        raise UnpackError(f"the kernel's payload begins with {payload[:4].hex()}, which is no known compression")
    if name not in _DECODERS:
        raise UnpackError(f"the kernel is compressed with {name}, which cannot be unpacked here")
    if len(payload) < 8:
        raise UnpackError("the kernel's payload is cut short")
    expected = int.from_bytes(payload[-4:], "little")
    if expected > _LARGEST:
        raise UnpackError(f"the kernel claims to unpack to {expected} bytes; the limit is {_LARGEST}")
    data = expand(name, memoryview(payload)[: None if name == "gzip" else -4], expected)
    if len(data) != expected:
        raise UnpackError(
            f"the kernel's {name} payload is damaged: it does not unpack to the {expected} bytes it claims"
        )
    return data


def expand(name: str, stream: bytes | memoryview, most: int) -> bytes:
    """What `stream` unpacks to, of which no more than `most` + 1 bytes are ever made: who gets so many has not got all.

    Raises UnpackError for what is damaged or cut short, and for a format that is not supported.
    """
    if name not in _DECODERS:
        raise UnpackError(f"it is compressed with {name}, which cannot be unpacked here")
    try:
        return _DECODERS[name](stream, most)
    except MemoryError as exc:
        raise UnpackError(f"there is no memory to unpack up to {most} bytes") from exc
    except (
        OSError,
        EOFError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
        lz4.block.LZ4BlockError,
        zstandard.ZstdError,
    ) as exc:
        raise UnpackError(f"its {name} data is damaged: {exc}") from exc


def begin(name: str, stream: bytes | memoryview, size: int) -> bytes:
    """The first `size` bytes of what `stream` unpacks to, fewer if it has no more. Raises UnpackError."""
    if name == "lz4":  # whose blocks are unpacked as a whole
        stream = stream[: 8 + int.from_bytes(stream[4:8], "little")]
        return expand(name, stream, _LZ4_BLOCK)[:size]
    return expand(name, stream, size)[:size]


def _gzip(stream: bytes | memoryview, size: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)  # 31: gzip header and CRC
    data = inflater.decompress(stream, size + 1)  # flush() would give all that is left, however much that is
    return _whole(data, size, ended=inflater.eof)


def _bzip2(stream: bytes | memoryview, size: int) -> bytes:
    inflater = bz2.BZ2Decompressor()
    data = inflater.decompress(stream, size + 1)
    return _whole(data, size, ended=inflater.eof)


def _lzma(stream: bytes | memoryview, size: int) -> bytes:
    """.xz or .lzma, branch filters included; the limit is against a header that asks for gigabytes of dictionary."""
    inflater = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY)
    data = inflater.decompress(stream, size + 1)
    return _whole(data, size, ended=inflater.eof)


def _whole(data: bytes, size: int, *, ended: bool) -> bytes:
    """`data`, unless the stream had no more before its end. Raises ValueError."""
    if not ended and len(data) <= size:
        raise ValueError("the stream does not end")
    return data


def _lz4_legacy(stream: bytes | memoryview, size: int) -> bytes:
    blocks, total, at = [], 0, 4
    while at + 4 <= len(stream):
        if total % _LZ4_BLOCK:
            raise ValueError("a block that is not the last is short")  # or a file of empty blocks would take for ever
        length = int.from_bytes(stream[at : at + 4], "little")
        if not 0 < length <= len(stream) - at - 4:
            raise ValueError(f"a block of {length} bytes does not fit")
        block = lz4.block.decompress(stream[at + 4 : at + 4 + length], uncompressed_size=_LZ4_BLOCK)
        if not block:
            raise ValueError("a block is empty")
        blocks.append(block)
        total += len(block)
        if total > size:
            raise ValueError("longer than it says")
        at += 4 + length
    return b"".join(blocks)


def _zstd(stream: bytes | memoryview, size: int) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decoder.stream_reader(stream) as reader:
        data = reader.read(size + 1)
    return _whole(data, size, ended=len(data) > size or _zstd_ends(stream))


def _zstd_ends(stream: bytes | memoryview) -> bool:
    """Whether the last block of the frame is all there; the library does not say (RFC 8878, 3.1.1)."""
    at = zstandard.frame_header_size(stream)
    last = False
    while not last:
        if at + 3 > len(stream):
            return False
        header = int.from_bytes(stream[at : at + 3], "little")
        last, repeats = bool(header & 1), header >> 1 & 3 == 1
        at += 3 + (1 if repeats else header >> 3)
    checksum = 4 if zstandard.get_frame_parameters(stream).has_checksum else 0
    return at + checksum <= len(stream)


def _none(stream: bytes | memoryview, size: int) -> bytes:
    return bytes(stream[:size])


_DECODERS: dict[str, Callable[[bytes | memoryview, int], bytes]] = {
    "gzip": _gzip,
    "bzip2": _bzip2,
    "lzma": _lzma,
    "xz": _lzma,
    "lz4": _lz4_legacy,
    "zstd": _zstd,
    "none": _none,
}
