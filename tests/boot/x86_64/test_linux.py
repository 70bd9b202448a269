"""What the kernel finds in memory at its first instruction, field by field as its boot protocol names them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from aiovmm.boot.x86_64 import layout, linux, load_kernel, ram_ranges, setup_linux
from aiovmm.boot.x86_64.kernel import KernelImage
from aiovmm.boot.x86_64.params import zero_page
from aiovmm.errors import ConfigError, ImageError
from aiovmm.memory import GuestMemory
from tests.boot.images import CODE, KERNEL_ADDRESS, bzimage, elf, payload

Put = Callable[..., Path]
RAM = ram_ranges(64 << 20)


@pytest.fixture
def kernel(put: Put, cache: Path) -> KernelImage:
    return load_kernel(put(bzimage(payload(elf(), "gzip"))), cache=cache)


@pytest.fixture
def pvh_kernel(put: Put, cache: Path) -> KernelImage:
    return load_kernel(put(elf(pvh=KERNEL_ADDRESS + 0x850), "vmlinux"), cache=cache)


def e820(memory: GuestMemory, page: int) -> list[tuple[int, int, int]]:
    count = memory.read(page + 0x1E8, 1)[0]
    return list(struct.iter_unpack("<QQI", memory.read(page + 0x2D0, 20 * count)))


def test_zero_page(memory: GuestMemory, kernel: KernelImage) -> None:
    state = setup_linux(memory, kernel, "console=ttyS0 quiet", b"cpio" * 1000, RAM, 0xA0000)
    page = memory.read(state.rsi, 4096)

    def u(offset: int, size: int) -> int:
        return int.from_bytes(page[offset : offset + size], "little")

    assert page[0x202:0x206] == b"HdrS"
    assert (u(0x1FE, 2), u(0x206, 2)) == (0xAA55, 0x20F)
    assert u(0x210, 1) == 0xFF, "type_of_loader: undefined"
    assert u(0x070, 8) == 0xA0000, "acpi_rsdp_addr"
    assert (u(0x230, 4), u(0x258, 8)) == (0x200000, KERNEL_ADDRESS), "kernel_alignment and pref_address as in the image"
    assert page[0x26C:0x290] == bytes(0x24), "nothing of what follows the header in the image"
    assert page[0x1EF] == 0, "sentinel"

    cmdline = u(0x228, 4)
    assert memory.read(cmdline, 20) == b"console=ttyS0 quiet\0"
    assert cmdline + 20 < layout.LOW_RAM_END

    start, size = u(0x218, 4), u(0x21C, 4)
    assert memory.read(start, size) == b"cpio" * 1000
    assert start % 4096 == 0
    assert (64 << 20) - 4096 <= start + size <= 64 << 20, "at the top of RAM"


def test_memory_map_of_a_guest_with_5_gib(memory: GuestMemory, kernel: KernelImage) -> None:
    state = setup_linux(memory, kernel, "", None, ram_ranges(5 << 30), 0)
    assert e820(memory, state.rsi) == [
        (0, 0xA0000, 1),
        (0xA0000, 0x60000, 2),
        (0x100000, 0xC0000000 - 0x100000, 1),
        (layout.ECAM, layout.ECAM_SIZE, 2),
        (1 << 32, 2 << 30, 1),
    ]


def test_no_initrd(memory: GuestMemory, kernel: KernelImage) -> None:
    state = setup_linux(memory, kernel, "", None, RAM)
    assert memory.read(state.rsi + 0x218, 8) == bytes(8)


def test_initrd_from_a_file(memory: GuestMemory, kernel: KernelImage, put: Put) -> None:
    path = put(b"070701" + bytes(10000), "initrd")
    state = setup_linux(memory, kernel, "", path, RAM)
    start, size = struct.unpack("<II", memory.read(state.rsi + 0x218, 8))
    assert memory.read(start, size) == path.read_bytes()


def test_initrd_stays_below_what_the_kernel_can_reach(memory: GuestMemory, put: Put, cache: Path) -> None:
    kernel = load_kernel(put(bzimage(payload(elf(), "gzip"), initrd_max=0x2FFFFFF)), cache=cache)
    state = setup_linux(memory, kernel, "", b"x" * 5000, RAM)
    start, size = struct.unpack("<II", memory.read(state.rsi + 0x218, 8))
    assert start + size <= 0x3000000
    assert start == 0x3000000 - 0x2000


def test_initrd_that_would_overwrite_the_kernel_is_refused(memory: GuestMemory, kernel: KernelImage) -> None:
    room = (64 << 20) - kernel.entry.end
    with pytest.raises(ImageError, match=f"leaves {room} bytes.*more memory"):
        setup_linux(memory, kernel, "", bytes(room + 1), RAM)
    setup_linux(memory, kernel, "", bytes(room & ~4095), RAM)


def test_kernel_and_initrd_lie_across_zones_of_memory(put: Put, cache: Path) -> None:
    """A guest's memory may be of many regions, which end where they like."""
    code, content = bytes(range(256)) * 40, bytes(range(256)) * 40000
    kernel = load_kernel(put(elf([(KERNEL_ADDRESS, code, 8 << 20)])), cache=cache)
    starts = [0, KERNEL_ADDRESS + 4096, KERNEL_ADDRESS + (4 << 20), 60 << 20, 64 << 20]
    zones = GuestMemory.create([(start, end - start) for start, end in itertools.pairwise(starts)])
    try:
        for fresh in (True, False):
            kernel.load_into(zones, fresh=fresh)
            found = b"".join(view for _, view in zones.pieces(KERNEL_ADDRESS, 8 << 20))
            assert found == code.ljust(8 << 20, b"\0")
            zones.slice(starts[2], 4)[:] = b"used"
        state = setup_linux(zones, kernel, "", content, RAM)
        start, size = struct.unpack("<II", zones.read(state.rsi + 0x218, 8))
        assert b"".join(view for _, view in zones.pieces(start, size)) == content
    finally:
        zones.close()


class Placed:
    """Guest memory of any size, of which only the address that something goes to is of interest."""

    def __init__(self) -> None:
        self.at: dict[int, int] = {}

    def pieces(self, address: int, size: int) -> list[tuple[int, memoryview]]:
        self.at[address] = size
        return []

    def write(self, address: int, data: bytes) -> None:
        pass


class Huge:
    """An initrd of `size` bytes that are never there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, pieces: object, *, zeroed: bool = False) -> None:
        pass


def place(kernel: KernelImage, size: int, gigabytes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(linux, "initrd_source", lambda initrd: (Huge(size), "initrd"))
    memory = Placed()
    setup_linux(memory, kernel, "", b"stands for it", ram_ranges(gigabytes << 30))  # type: ignore[arg-type]
    ((address, length),) = memory.at.items()
    return address, length


GIB = 1 << 30
ABOVE_4G = 2  # of xloadflags


@pytest.mark.parametrize(
    ("size", "gigabytes", "top"),
    [
        (GIB, 8, 2 * GIB),  # where every kernel finds it
        (5 * GIB // 2, 3, 3 * GIB),  # between initrd_addr_max and the PCI hole
        (5 * GIB // 2, 16, 3 * GIB),
        (4 * GIB, 16, 17 * GIB),  # above 4 GiB; the hole is 1 GiB
        (9 * GIB, 16, 17 * GIB),
    ],
)
def test_initrd_of_gigabytes(
    size: int, gigabytes: int, top: int, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kernel.header is not None
    assert kernel.header.above_4g
    assert place(kernel, size, gigabytes, monkeypatch) == (top - size, size)


def test_initrd_above_4_gib_in_the_zero_page(kernel: KernelImage) -> None:
    header = kernel.header
    assert header is not None
    page = zero_page(header, cmdline=0x20000, initrd=(0x123456000, 0x300001000), e820=[], rsdp=0)
    assert struct.unpack_from("<II", page, 0x218) == (0x23456000, 0x00001000)
    assert struct.unpack_from("<II", page, 0xC0) == (0x1, 0x3), "ext_ramdisk_image, ext_ramdisk_size"


def test_initrd_out_of_an_old_kernels_reach(put: Put, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_kernel(put(bzimage(payload(elf(), "gzip"), xloadflags=0x7F & ~ABOVE_4G)), cache=cache)
    most = 2 * GIB - old.entry.end
    with pytest.raises(ImageError, match=f"no more than {most} bytes are in this kernel's reach"):
        place(old, 5 * GIB // 2, 16, monkeypatch)
    with pytest.raises(ImageError, match="give the guest more memory"):
        place(old, GIB, 1, monkeypatch)


def test_initrd_for_pvh_is_below_4_gib(pvh_kernel: KernelImage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place(pvh_kernel, 5 * GIB // 2, 16, monkeypatch) == (GIB // 2, 5 * GIB // 2)
    with pytest.raises(ImageError, match="in this kernel's reach"):
        place(pvh_kernel, 3 * GIB, 16, monkeypatch)


def test_initrd_that_is_no_file_or_empty(memory: GuestMemory, kernel: KernelImage, put: Put, tmp_path: Path) -> None:
    for initrd in (b"", put(b"", "empty")):
        with pytest.raises(ImageError, match="empty"):
            setup_linux(memory, kernel, "", initrd, RAM)
    with pytest.raises(ImageError, match="no such initramfs"):
        setup_linux(memory, kernel, "", tmp_path / "none", RAM)


def test_command_line_as_long_as_the_kernel_takes(memory: GuestMemory, kernel: KernelImage) -> None:
    setup_linux(memory, kernel, "x" * 2047, None, RAM)
    assert memory.read(layout.CMDLINE, 2048) == b"x" * 2047 + b"\0"
    with pytest.raises(ConfigError, match="2048 bytes long; this kernel takes 2047"):
        setup_linux(memory, kernel, "x" * 2048, None, RAM)
    with pytest.raises(ConfigError, match="2048 bytes"):
        setup_linux(memory, kernel, "é" * 1024, None, RAM)
    with pytest.raises(ConfigError, match="NUL"):
        setup_linux(memory, kernel, "quiet\0", None, RAM)


def test_guest_too_small_for_anything(kernel: KernelImage) -> None:
    memory = GuestMemory.create([(0, 0x20000)])
    with pytest.raises(ImageError, match="no room"):
        setup_linux(memory, kernel, "", None, [(0, 0x20000)])
    memory.close()


def test_bare_vmlinux_without_pvh_gets_a_zero_page_too(memory: GuestMemory, put: Put, cache: Path) -> None:
    state = setup_linux(memory, load_kernel(put(elf()), cache=cache), "quiet", b"initrd", RAM, 0xA0000)
    page = memory.read(state.rsi, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x210] == 0xFF
    assert page[0x211] & 1, "LOADED_HIGH"


def test_pvh_start_info(memory: GuestMemory, pvh_kernel: KernelImage) -> None:
    state = setup_linux(memory, pvh_kernel, "console=hvc0", b"initrd!", RAM, 0xA0000)
    magic, version, flags, modules, modlist, cmdline, rsdp, memmap, entries, reserved = struct.unpack(
        "<4I4Q2I", memory.read(state.rbx, 56)
    )
    assert (magic, version, flags, reserved) == (0x336EC578, 1, 0, 0)
    assert rsdp == 0xA0000
    assert memory.read(cmdline, 13) == b"console=hvc0\0"
    assert modules == 1
    start, size, module_cmdline, _ = struct.unpack("<4Q", memory.read(modlist, 32))
    assert memory.read(start, size) == b"initrd!"
    assert module_cmdline == 0
    table = list(struct.iter_unpack("<QQII", memory.read(memmap, 24 * entries)))
    assert table[0] == (0, 0xA0000, 1, 0)
    assert [entry[0] for entry in table] == sorted(entry[0] for entry in table)


def test_pvh_without_initrd(memory: GuestMemory, pvh_kernel: KernelImage) -> None:
    state = setup_linux(memory, pvh_kernel, "", None, RAM)
    assert struct.unpack("<IQ", memory.read(state.rbx + 12, 12)) == (0, 0)


def test_the_kernel_itself_is_not_touched(memory: GuestMemory, kernel: KernelImage) -> None:
    kernel.load_into(memory)
    setup_linux(memory, kernel, "x" * 2047, bytes(1 << 20), RAM)
    assert memory.read(KERNEL_ADDRESS, len(CODE)) == CODE


def test_low_memory_areas_do_not_overlap() -> None:
    areas = [
        (layout.GDT, 48),
        (layout.IDT, 8),
        (layout.PVH_START_INFO, 56),
        (layout.PVH_MODULES, 32),
        (layout.PVH_MEMMAP, 24 * 128),
        (layout.ZERO_PAGE, 4096),
        (layout.BOOT_STACK - 0x800, 0x800),
        (layout.PML4, 4096),
        (layout.PDPT, 4096),
        (layout.PAGE_DIRECTORIES, 4 * 4096),
        (layout.CMDLINE, layout.CMDLINE_MAX),
        (layout.RSDP, 36),
        (layout.ACPI_TABLES, 1),
    ]
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(areas))
    assert layout.CMDLINE + layout.CMDLINE_MAX <= layout.LOW_RAM_END
