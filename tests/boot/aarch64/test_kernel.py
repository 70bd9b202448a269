"""arm64 kernel files as users have them: every packing, and everything that is none."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.boot.aarch64 import KernelKind, load_kernel
from aiovmm.errors import ImageError
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.images import ADDRESS, NAMES, image, zboot
from tests.boot.images import CODE, COMPRESSORS, bzimage, elf, payload

Put = Callable[..., Path]
IMAGE = image()
PACKINGS = [name for name in COMPRESSORS if name != "none"]


def test_image_is_loaded_and_entered_at_its_first_byte(put: Put, cache: Path, memory: GuestMemory) -> None:
    kernel = load_kernel(put(IMAGE), cache=cache)
    entry = kernel.load_into(memory)
    assert (kernel.kind, kernel.compression) == (KernelKind.IMAGE, "none")
    assert entry.address == ADDRESS
    assert entry.end == ADDRESS + 64 + len(CODE) + 0x3000
    assert memory.read(ADDRESS, len(IMAGE)) == IMAGE
    assert not cache.exists(), "there is nothing to unpack"


@pytest.mark.parametrize("compression", PACKINGS)
def test_image_in_every_compression(compression: str, put: Put, cache: Path, memory: GuestMemory) -> None:
    path = put(COMPRESSORS[compression](IMAGE))
    for kernel in (load_kernel(path, cache=cache), load_kernel(path, cache=cache)):  # unpacked, then from the cache
        assert kernel.load_into(memory).address == ADDRESS
        assert (kernel.kind, kernel.compression) == (KernelKind.PACKED, compression)
        assert memory.read(ADDRESS, len(IMAGE)) == IMAGE
        memory.write(ADDRESS, bytes(len(IMAGE)))


@pytest.mark.parametrize("compression", NAMES)
def test_zboot_in_every_compression(compression: str, put: Put, cache: Path, memory: GuestMemory) -> None:
    padded = IMAGE + bytes(0x3000)  # Kbuild packs it with its .bss
    path = put(zboot(padded, compression))
    for kernel in (load_kernel(path, cache=cache), load_kernel(path, cache=cache)):
        entry = kernel.load_into(memory)
        assert (kernel.kind, kernel.compression) == (KernelKind.ZBOOT, compression)
        assert (entry.address, entry.end) == (ADDRESS, ADDRESS + len(padded))
        assert memory.read(ADDRESS, len(padded)) == padded
        memory.write(ADDRESS, bytes(len(padded)))


def test_a_large_packed_kernel(put: Put, cache: Path, memory: GuestMemory) -> None:
    import os

    big = image(os.urandom(1 << 20) * 17)  # several of the blocks of lz4
    for packed in (COMPRESSORS["lz4"](big), zboot(big, "lz4")):
        load_kernel(put(packed), cache=cache).load_into(memory)
        assert memory.read(ADDRESS, len(big)) == big


@pytest.mark.parametrize("text_offset", [0x80000, 0x1FF000])
def test_text_offset(text_offset: int, put: Put, cache: Path, memory: GuestMemory) -> None:
    data = image(text_offset=text_offset)
    entry = load_kernel(put(data), cache=cache).load_into(memory)
    assert entry.address == ADDRESS + text_offset
    assert memory.read(entry.address, len(data)) == data


def test_a_kernel_from_before_its_size_was_told(put: Put, cache: Path, memory: GuestMemory) -> None:
    """booting.rst: text_offset is 0x80000 then, in whatever byte order, and as much as possible is to be left free."""
    entry = load_kernel(put(image(size=0, text_offset=0x0000080000000000, flags=0)), cache=cache).load_into(memory)
    assert entry.address == ADDRESS + 0x80000
    assert entry.end >= entry.address + (16 << 20)


def test_flags(put: Put, cache: Path) -> None:
    header = load_kernel(put(image(flags=0b0111)), cache=cache).header
    assert (header.big_endian, header.page_size, header.anywhere) == (True, 65536, False)
    header = load_kernel(put(image(flags=0b1000)), cache=cache).header
    assert (header.big_endian, header.page_size, header.anywhere) == (False, None, True)


def test_something_appended_to_an_image_is_loaded_with_it(put: Put, cache: Path, memory: GuestMemory) -> None:
    """A signature for Secure Boot, say: it may be longer than the kernel's .bss."""
    data = IMAGE + b"signature" * 4096
    entry = load_kernel(put(data), cache=cache).load_into(memory)
    assert entry.end == ADDRESS + len(data)


def test_memory_used_before_is_cleared(put: Put, cache: Path, memory: GuestMemory) -> None:
    kernel = load_kernel(put(IMAGE), cache=cache)
    memory.write(ADDRESS, b"\xff" * kernel.header.size)
    kernel.load_into(memory, fresh=False)
    assert memory.read(ADDRESS, kernel.header.size) == IMAGE + bytes(0x3000)


def test_a_kernel_that_does_not_fit(put: Put, cache: Path, memory: GuestMemory) -> None:
    kernel = load_kernel(put(image(size=63 << 20)), cache=cache)
    with pytest.raises(ImageError, match=r"needs? 68157440 bytes.*at least 65M"):
        kernel.load_into(memory)


def test_a_file_that_changed(put: Put, cache: Path, memory: GuestMemory) -> None:
    path = put(IMAGE)
    kernel = load_kernel(path, cache=cache)
    path.write_bytes(IMAGE + b"more")
    with pytest.raises(ImageError, match="changed after it was examined"):
        kernel.load_into(memory)


def test_a_cache_entry_that_is_gone_is_made_again(put: Put, cache: Path, memory: GuestMemory) -> None:
    kernel = load_kernel(put(gzip.compress(IMAGE)), cache=cache)
    for kept in cache.glob("*.vmlinux"):
        kept.unlink()
    kernel.load_into(memory)
    assert memory.read(ADDRESS, len(IMAGE)) == IMAGE


REFUSED = {
    "empty": (b"", "is empty"),
    "a bare header cut short": (IMAGE[:63], "not a kernel: only 63 bytes long"),
    "text_offset too high": (image(text_offset=0x200000), "2 MiB"),
    "text_offset of no page": (image(text_offset=0x123), "2 MiB"),
    "a size that no kernel has": (image(size=1 << 60), "limit"),
    "bzImage": (bzimage(payload(elf(), "gzip")), "bzImage for x86; this machine runs arm64 kernels"),
    "vmlinux": (elf(machine=183), "an ELF file .vmlinux.*the Image made of it"),
    "vmlinux for another processor": (elf(), "an ELF file for x86-64; this machine runs arm64 kernels"),
    "RISC-V": (image(magic=b"RSC\x05"), "RISC-V"),
    "initramfs": (gzip.compress(b"070701" + bytes(2000)), "initramfs"),
    "an initramfs not packed": (b"070701" + bytes(2000), "initramfs"),
    "text": (b"what?" * 500, "not a kernel"),
    "zboot for RISC-V": (zboot(IMAGE, machine=0x5064), "another processor.*give an arm64"),
    "zboot packed by LZO": (zboot(IMAGE, name="lzo"), "lzo"),
    "zboot packed by nobody knows": (zboot(IMAGE, name="arj"), "'arj'"),
    "zboot cut short": (zboot(IMAGE)[:0x1100], "truncated"),
    "zboot with a payload elsewhere": (zboot(IMAGE, offset=0xFFFFFFFF), "truncated"),
    "zboot with nothing in it": (zboot(IMAGE, size=0), "truncated"),
    "zboot around something else": (zboot(elf(machine=183)), "gzip-compressed, and in it: an ELF file"),
    "Image.lzo": (b"\x89LZO" + bytes(1000), "lzo"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_arm64_kernel(what: str, put: Put, cache: Path) -> None:
    data, reason = REFUSED[what]
    with pytest.raises(ImageError, match=reason):
        load_kernel(put(data), cache=cache)


@pytest.mark.parametrize("compression", PACKINGS)
def test_packed_image_cut_short(compression: str, put: Put, cache: Path) -> None:
    packed = COMPRESSORS[compression](IMAGE)
    for size in (len(packed) - 1, len(packed) // 2, 20):
        with pytest.raises(ImageError, match=r"damaged|cut short|not a kernel|truncated"):
            load_kernel(put(packed[:size]), cache=cache)


def test_unpacks_to_more_than_it_says(put: Put, cache: Path) -> None:
    with pytest.raises(ImageError, match="more than the 100 bytes"):
        load_kernel(put(gzip.compress(image(size=100))), cache=cache)
