"""Say what a file is that is not an x86-64 Linux kernel, so that the error can name it. Pure."""

from __future__ import annotations

__all__ = ["HEAD_SIZE", "describe"]

HEAD_SIZE = 0x9000  # bytes; the farthest mark is that of a CD image

_AT_START = (
    (b"070701", "an initramfs (cpio archive), not a kernel"),
    (b"\x1f\x8b", "a gzip-compressed file, not a bzImage: unpack it first"),
    (b"BZh", "a bzip2-compressed file, not a bzImage: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz-compressed file, not a bzImage: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd-compressed file, not a bzImage: unpack it first"),
    (b"\x02\x21\x4c\x18", "an lz4-compressed file, not a bzImage: unpack it first"),
    (b"QFI\xfb", "a qcow2 disk image, not a kernel"),
    (b"!<arch>\n", "an archive (.a or .deb), not a kernel: unpack it first"),
    (b"#!", "a script, not a kernel"),
    (b"PK\x03\x04", "a zip archive, not a kernel"),
)
_AT_OFFSET = (
    (0x38, b"ARMd", "an arm64 Linux Image; this machine runs x86-64 kernels"),
    (0x38, b"RSC\x05", "a RISC-V Linux Image; this machine runs x86-64 kernels"),
    (0x38, b"RSCV", "a RISC-V Linux Image; this machine runs x86-64 kernels"),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit ARM zImage; this machine runs x86-64 kernels"),
    (0x04, b"zimg", "an EFI zboot image (arm64, RISC-V or LoongArch); this machine runs x86-64 kernels"),
    (0x8001, b"CD001", "a CD image, not a kernel"),
)


def describe(data: bytes) -> str:
    """One clause on what a file is that begins with `data` (HEAD_SIZE bytes, or all of it) and is neither ELF nor bzImage."""
    for magic, text in _AT_START:
        if data.startswith(magic):
            return text
    for offset, magic, text in _AT_OFFSET:
        if data.startswith(magic, offset):
            return text
    if len(data) < 0x206:
        return f"not a kernel: only {len(data)} bytes long"
    if data.startswith(b"MZ"):
        return "an EFI or DOS program without a Linux setup header"
    if data[0x1FE:0x200] == b"\x55\xaa":
        return "a boot sector or disk image, not a Linux kernel"
    return "not a kernel: neither a bzImage nor an ELF file"
