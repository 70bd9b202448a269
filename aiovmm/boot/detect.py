"""Say what a file is that is no kernel for this machine, so that the error can name it. Pure."""

from __future__ import annotations

from aiovmm.architecture import AARCH64, X86_64, Architecture

__all__ = ["HEAD_SIZE", "describe"]

HEAD_SIZE = 0x9000  # bytes; the farthest mark is that of a CD image

_AT_START = (
    (b"070701", "an initramfs (cpio archive), not a kernel"),
    (b"QFI\xfb", "a qcow2 disk image, not a kernel"),
    (b"!<arch>\n", "an archive (.a or .deb), not a kernel: unpack it first"),
    (b"#!", "a script, not a kernel"),
    (b"PK\x03\x04", "a zip archive, not a kernel"),
)
_KERNELS = (
    (0x202, b"HdrS", X86_64, "a Linux bzImage for x86"),
    (0x38, b"ARMd", AARCH64, "an arm64 Linux Image"),
    (0x38, b"RSC\x05", None, "a RISC-V Linux Image"),
    (0x38, b"RSCV", None, "a RISC-V Linux Image"),
    (0x24, b"\x18\x28\x6f\x01", None, "a 32-bit ARM zImage"),
    (0x04, b"zimg", AARCH64, "an EFI zboot image (arm64, RISC-V or LoongArch)"),
)
_CD_IMAGE = 0x8001, b"CD001"


_PEEKED = 0x240  # bytes of what is packed: up to the farthest mark of a kernel


def describe(data: bytes, runs: Architecture) -> str:
    """One clause on what a file is that begins with `data` (HEAD_SIZE bytes, or all of it) and is no kernel that machines of
    `runs` run."""
    if (known := _known(data, runs)) is not None:
        return known
    from aiovmm.boot import unpack  # for who has given something else

    if (compression := unpack.detect(data)) not in (None, "none"):
        file = f"{'an' if compression[0] in 'lx' else 'a'} {compression}-compressed file"
        inside = _known(_begin(compression, data), runs)
        return f"{file}: unpack it first" if inside is None else f"{file}, and in it is {inside}"
    return _anything_else(data)


def _known(data: bytes, runs: Architecture) -> str | None:
    for magic, text in _AT_START:
        if data.startswith(magic):
            return text
    for offset, magic, architecture, text in _KERNELS:
        if architecture is not runs and data.startswith(magic, offset):
            return f"{text}; this machine runs {runs.title} kernels"
    return None


def _begin(compression: str, data: bytes) -> bytes:
    """How what is packed in `data` begins, if so little is enough to say."""
    from aiovmm.boot import unpack

    try:
        return unpack.begin(compression, data, _PEEKED)
    except unpack.UnpackError:
        return b""


def _anything_else(data: bytes) -> str:
    if data.startswith(_CD_IMAGE[1], _CD_IMAGE[0]):
        return "a CD image, not a kernel"
    if len(data) < 0x206:
        return f"not a kernel: only {len(data)} bytes long"
    if data.startswith(b"MZ"):
        return "an EFI or DOS program without a Linux setup header"
    if data[0x1FE:0x200] == b"\x55\xaa":
        return "a boot sector or disk image, not a Linux kernel"
    return "not a kernel in any known format"
