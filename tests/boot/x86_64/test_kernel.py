"""Kernel files as users have them: every packing, and everything that is not a kernel."""

from __future__ import annotations

import gzip
import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.boot.x86_64 import BootProtocol, KernelKind, load_kernel
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.images import image as arm64_image
from tests.boot.aarch64.images import zboot
from tests.boot.images import CODE, COMPRESSORS, INTERP, KERNEL_ADDRESS, bzimage, elf, payload

Put = Callable[..., Path]


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_bzimage_in_every_compression_loads_its_vmlinux(
    compression: str, put: Put, cache: Path, memory: GuestMemory
) -> None:
    path = put(bzimage(payload(elf(), compression)))
    for image in (load_kernel(path, cache=cache), load_kernel(path, cache=cache)):  # unpacked, then from the cache
        entry = image.load_into(memory)
        assert image.kind is KernelKind.BZIMAGE
        assert image.compression == compression
        assert (entry.address, entry.protocol) == (KERNEL_ADDRESS + 0x40, BootProtocol.LINUX64)
        assert entry.end == KERNEL_ADDRESS + len(CODE) + 0x3000
        assert memory.read(KERNEL_ADDRESS, len(CODE)) == CODE
        memory.write(KERNEL_ADDRESS, bytes(len(CODE)))


def test_lz4_kernel_of_several_blocks(put: Put, cache: Path, memory: GuestMemory) -> None:
    big = os.urandom(1 << 20) * 9 + b"the end"  # the legacy format cuts at 8 MiB
    vmlinux = elf([(KERNEL_ADDRESS, big, len(big))])
    load_kernel(put(bzimage(payload(vmlinux, "lz4"))), cache=cache).load_into(memory)
    assert memory.read(KERNEL_ADDRESS, len(big)) == big


def test_vmlinux_with_two_segments_leaves_the_gap_alone(put: Put, cache: Path, memory: GuestMemory) -> None:
    memory.write(0x1200000, b"untouched")
    image = load_kernel(put(elf([(KERNEL_ADDRESS, CODE, len(CODE)), (0x1400000, b"data", 0x10000)])), cache=cache)
    entry = image.load_into(memory)
    assert image.kind is KernelKind.ELF
    assert entry.protocol is BootProtocol.LINUX64
    assert memory.read(0x1400000, 4) == b"data"
    assert memory.read(0x1200000, 9) == b"untouched"
    assert entry.end == 0x1410000


def test_vmlinux_with_pvh_note_is_entered_there(put: Put, cache: Path) -> None:
    image = load_kernel(put(elf(pvh=KERNEL_ADDRESS + 0x850)), cache=cache)
    assert image.kind is KernelKind.PVH
    assert image.entry.address == KERNEL_ADDRESS + 0x850
    assert image.entry.protocol is BootProtocol.PVH


def test_bzimage_is_entered_at_its_64bit_entry_although_it_has_a_pvh_note(put: Put, cache: Path) -> None:
    image = load_kernel(put(bzimage(payload(elf(pvh=KERNEL_ADDRESS + 0x850), "gzip"))), cache=cache)
    assert image.entry.protocol is BootProtocol.LINUX64


def test_32bit_kernel_with_a_pvh_note(put: Put, cache: Path, memory: GuestMemory) -> None:
    image = load_kernel(put(elf(elf_class=1, pvh=KERNEL_ADDRESS + 0x10)), cache=cache)
    entry = image.load_into(memory)
    assert (image.kind, entry.protocol, entry.address) == (KernelKind.PVH, BootProtocol.PVH, KERNEL_ADDRESS + 0x10)
    assert memory.read(KERNEL_ADDRESS, len(CODE)) == CODE


def test_bzimage_around_a_32bit_kernel_is_entered_by_pvh(put: Put, cache: Path) -> None:
    packed = payload(elf(elf_class=1, pvh=KERNEL_ADDRESS + 0x10), "xz")
    for _ in range(2):  # unpacked, then from the cache
        image = load_kernel(put(bzimage(packed, xloadflags=0)), cache=cache)
        assert (image.entry.protocol, image.entry.address) == (BootProtocol.PVH, KERNEL_ADDRESS + 0x10)


@pytest.mark.parametrize("missing", [0, 1, 15])
def test_a_file_may_end_within_the_last_paragraph(missing: int, put: Put, cache: Path) -> None:
    """As memtest86+ does: syssize is rounded up."""
    data = bzimage(b"", signature=b"")
    load_kernel(put(data[: len(data) - missing]), cache=cache)
    with pytest.raises(ImageError, match="truncated"):
        load_kernel(put(data[:-16]), cache=cache)


def test_fields_of_a_later_protocol_are_not_read(put: Put, cache: Path) -> None:
    image = load_kernel(put(bzimage(payload(elf(), "gzip"), version=0x20A)), cache=cache)
    assert image.header is not None
    assert image.header.field(0x260, "<I") == 0x100000
    assert image.header.field(0x236, "<H") == 0, "xloadflags came with 2.12"
    with pytest.raises(ImageError, match="32-bit kernel"):
        load_kernel(put(bzimage(b"", version=0x20A)), cache=cache)


@pytest.mark.parametrize("address", [0x1000, 0x7000, 0x2F000, 0xA0000, 0xFF000])
def test_kernel_where_the_boot_parameters_have_to_be(address: int, put: Put, cache: Path, memory: GuestMemory) -> None:
    image = load_kernel(put(elf([(KERNEL_ADDRESS, CODE, len(CODE)), (address, b"data", 4096)])), cache=cache)
    with pytest.raises(ImageError, match="boot parameters"):
        image.load_into(memory)


def test_kernel_that_is_entered_above_4_gib(put: Put, cache: Path, memory: GuestMemory) -> None:
    for data in (elf([(1 << 32, CODE, len(CODE))], entry=1 << 32), bzimage(b"", address=(1 << 63) - 1)):
        image = load_kernel(put(data), cache=cache)
        with pytest.raises(ImageError, match="above 4 GiB"):
            image.load_into(memory)


def test_vmlinux_that_names_a_virtual_entry(put: Put, cache: Path) -> None:
    high = 0xFFFFFFFF80000000
    vmlinux = elf(entry=high + KERNEL_ADDRESS + 0x40, virtual_offset=high)
    assert load_kernel(put(vmlinux), cache=cache).entry.address == KERNEL_ADDRESS + 0x40


def test_memory_used_before_is_cleared(put: Put, cache: Path, memory: GuestMemory) -> None:
    image = load_kernel(put(bzimage(payload(elf(), "none"))), cache=cache)
    memory.write(KERNEL_ADDRESS, b"\xff" * (len(CODE) + 0x3000))
    image.load_into(memory, fresh=False)
    assert memory.read(KERNEL_ADDRESS, len(CODE) + 0x3000) == CODE + bytes(0x3000)


def test_holes_of_the_cached_kernel_stay_unallocated_in_the_guest(put: Put, cache: Path, memory: GuestMemory) -> None:
    sparse = CODE + bytes(4 << 20) + CODE
    path = put(bzimage(payload(elf([(KERNEL_ADDRESS, sparse, len(sparse))]), "gzip")))
    load_kernel(path, cache=cache).load_into(memory)
    assert memory.read(KERNEL_ADDRESS + len(sparse) - len(CODE), len(CODE)) == CODE
    assert os.fstat(memory.regions[0].fd).st_blocks * 512 < 1 << 20


def test_packed_image_unpacks_itself_on_request(put: Put, cache: Path, memory: GuestMemory) -> None:
    data = bzimage(payload(elf(), "gzip"))
    image = load_kernel(put(data), cache=cache, unpack=False)
    entry = image.load_into(memory)
    assert entry.address == KERNEL_ADDRESS + 0x200
    assert entry.end >= KERNEL_ADDRESS + 0x100000  # init_size
    protected = data[4 * 512 :]
    assert memory.read(KERNEL_ADDRESS, len(protected)) == protected
    assert not cache.exists()


@pytest.mark.parametrize("packed", [b"", b"\x89LZO\x00\x0d\x0a\x1a\x0a" + bytes(50)], ids=["no payload", "lzo"])
def test_what_the_host_cannot_unpack_unpacks_itself(packed: bytes, put: Put, cache: Path) -> None:
    image = load_kernel(put(bzimage(packed)), cache=cache)
    assert image.compression == "packed"
    assert image.entry.address == KERNEL_ADDRESS + 0x200


def test_kernel_that_does_not_fit_says_so(put: Put, cache: Path, memory: GuestMemory) -> None:
    image = load_kernel(put(elf([(60 << 20, CODE, 8 << 20)], entry=60 << 20)), cache=cache)
    with pytest.raises(ImageError, match="give the guest more memory"):
        image.load_into(memory)


def test_file_that_changed_since_it_was_examined_is_not_loaded(put: Put, cache: Path, memory: GuestMemory) -> None:
    path = put(elf())
    image = load_kernel(path, cache=cache)
    put(elf() + b"more")
    with pytest.raises(ImageError, match="changed"):
        image.load_into(memory)


NOT_KERNELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "one byte": (b"x", "only 1 bytes"),
    "text": (b"hello world\n" * 100, "not a kernel in any known format"),
    "script": (b"#!/bin/sh\n" + bytes(1000), "script"),
    "initramfs": (b"070701" + bytes(2000), "initramfs"),
    "qcow2": (b"QFI\xfb" + bytes(2000), "qcow2"),
    "gzip file": (b"\x1f\x8b\x08" + bytes(2000), "gzip-compressed file"),
    "boot sector": (bytes(510) + b"\x55\xaa" + bytes(1024), "boot sector"),
    "EFI program": (b"MZ" + bytes(2000), "EFI or DOS program"),
    "arm64 Image": (b"MZ" + bytes(0x36) + b"ARMd" + bytes(2000), "arm64"),
    "arm64 zboot": (b"MZ\0\0zimg" + bytes(2000), "zboot"),
    "ARM zImage": (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(2000), "32-bit ARM"),
    "Image.gz for arm64": (
        gzip.compress(arm64_image()),
        "a gzip-compressed file, and in it is an arm64 Linux Image; this",
    ),
    "Image.zst for arm64": (
        COMPRESSORS["zstd"](arm64_image()),
        "a zstd-compressed file, and in it is an arm64 Linux Image",
    ),
    "packed initramfs": (gzip.compress(b"070701" + bytes(9000)), "in it is an initramfs .cpio archive., not a kernel"),
    "packed by lz4": (COMPRESSORS["lz4"](bytes(2000)), "an lz4-compressed file: unpack it first"),
    "zboot": (zboot(arm64_image()), "an EFI zboot image .*; this machine runs x86-64 kernels"),
    "RISC-V Image": (bytes(0x38) + b"RSC\x05" + bytes(2000), "RISC-V"),
    "arm64 vmlinux": (elf(machine=183), "64-bit ELF file for arm64"),
    "32-bit vmlinux": (elf(elf_class=1), "32-bit ELF file without a PVH entry"),
    "32-bit ARM vmlinux": (elf(machine=40, elf_class=1), "32-bit ELF file for 32-bit ARM"),
    "64-bit class, 32-bit machine": (elf(machine=3), "64-bit ELF file for 32-bit x86"),
    "user-space program": (elf(also=(INTERP,)), "user space.*PVH entry, for x86-64"),
    "program for a BIOS": (bzimage(b"", version=0x207), "boot protocol 2.7: it needs a BIOS"),
    "bzImage around a 32-bit kernel": (bzimage(payload(elf(elf_class=1), "gzip")), "32-bit ELF file without"),
    "kernel module": (elf(kind=1), "not an executable"),
    "ELF magic only": (b"\x7fELF", "truncated"),
    "ELF header only": (elf()[:64], "truncated"),
    "ELF cut short": (elf()[:0x2000], "truncated"),
    "ELF without segments": (elf([]), "without program headers"),
    "ELF entry elsewhere": (elf(entry=0x42), "entry point 0x42"),
    "bzImage cut in its header": (bzimage(b"")[:0x220], "truncated"),
    "bzImage cut in its setup": (bzimage(payload(elf(), "gzip"))[:0x300], "truncated"),
    "bzImage cut in its payload": (bzimage(payload(elf(), "zstd"))[:2700], "truncated: 2700 of"),
    "bzImage of unknown compression": (bzimage(b"whatever" * 100), "no known compression"),
    "bzImage around an arm64 kernel": (bzimage(payload(elf(machine=183), "xz")), "arm64"),
    "32-bit program without payload": (bzimage(b"", xloadflags=0), "32-bit"),
}


@pytest.mark.parametrize("case", NOT_KERNELS)
def test_what_is_not_a_kernel_is_named(case: str, put: Put, cache: Path) -> None:
    data, message = NOT_KERNELS[case]
    path = put(data)
    with pytest.raises(ImageError, match=message) as caught:
        load_kernel(path, cache=cache)
    assert str(caught.value).startswith(f"{path}: ")
    assert not list(cache.glob("*")), "nothing of it is kept"


def damage(packed: bytes, how: str) -> bytes:
    data = bytearray(packed)
    if how == "flip":
        data[len(data) // 2] ^= 0xFF
        data[len(data) // 2 + 1] ^= 0xFF
    elif how == "size":
        data[-4:] = struct.pack("<I", 123)
    else:
        del data[len(data) // 2 : -4]
    return bytes(data)


# a changed literal in lz4 goes unnoticed: the legacy format has no checksum
DAMAGES = [
    (c, how) for c in COMPRESSORS if c != "none" for how in ("flip", "size", "cut") if (c, how) != ("lz4", "flip")
]


@pytest.mark.parametrize(("compression", "how"), DAMAGES)
def test_damaged_payload(compression: str, how: str, put: Put, cache: Path) -> None:
    packed = payload(elf([(KERNEL_ADDRESS, random.Random(1).randbytes(4096), 4096)]), compression)
    with pytest.raises(ImageError, match="damaged"):
        load_kernel(put(bzimage(damage(packed, how))), cache=cache)


def test_size_field_that_asks_for_the_moon_is_refused(put: Put, cache: Path) -> None:
    packed = payload(elf(), "lz4")[:-4] + b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="claims to unpack to 4294967295"):
        load_kernel(put(bzimage(packed)), cache=cache)


def test_a_payload_that_goes_on_unpacking_is_stopped(put: Put, cache: Path) -> None:
    bomb = gzip.compress(bytes(256 << 20), 9)[:-4] + struct.pack("<I", 1000)
    blocks = b"\x02\x21\x4c\x18" + struct.pack("<IB", 1, 0) * 100_000 + struct.pack("<I", 8)
    for packed in (bomb, blocks):
        tracemalloc.start()
        with pytest.raises(ImageError, match=r"damaged"):
            load_kernel(put(bzimage(packed)), cache=cache)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
        tracemalloc.stop()


def test_missing_file_directory_and_fifo(tmp_path: Path, cache: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "none", "no such kernel"),
        (tmp_path, "directory"),
        (tmp_path / "fifo", "regular"),
    ):
        with pytest.raises(ImageError, match=message):
            load_kernel(path, cache=cache)
