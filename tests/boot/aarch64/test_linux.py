"""What stands in memory and in registers when the kernel's first instruction runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from aiovmm.boot.aarch64 import KernelImage, fresh_seeds, layout, linux, load_kernel, ram_ranges, setup_linux
from aiovmm.boot.aarch64.linux import CMDLINE_MAX
from aiovmm.errors import ConfigError, ImageError
from aiovmm.memory import GuestMemory
from tests.boot.aarch64.images import ADDRESS, image
from tests.boot.aarch64.machines import SEEDS, hardware, segments
from tests.boot.fdt.reader import Read, read

RAM = ram_ranges(64 << 20)


@pytest.fixture
def kernel(put: Callable[[bytes], Path], cache: Path, memory: GuestMemory) -> KernelImage:
    kernel = load_kernel(put(image()), cache=cache)
    kernel.load_into(memory)
    return kernel


def tree_in(memory: GuestMemory) -> Read:
    size = int.from_bytes(memory.read(layout.FDT + 4, 4), "big")
    return read(memory.read(layout.FDT, size))


def test_registers_and_tree(kernel: KernelImage, memory: GuestMemory) -> None:
    state = setup_linux(memory, kernel, "console=ttyAMA0 quiet", None, RAM, hardware(), SEEDS)
    assert (state.pc, state.x0, state.pstate) == (ADDRESS, 0x40000000, 0x3C5)
    chosen = tree_in(memory).at("/chosen")
    assert chosen.strings("bootargs") == ["console=ttyAMA0 quiet"]
    assert chosen.quads("kaslr-seed") == [SEEDS.kaslr]


def test_initramfs_lies_at_the_top_of_low_memory(kernel: KernelImage, memory: GuestMemory, tmp_path: Path) -> None:
    content = b"070701" + bytes(range(256)) * 33
    path = tmp_path / "initramfs"
    path.write_bytes(content)
    for initrd in (content, path):
        setup_linux(memory, kernel, "", initrd, RAM, hardware())
        chosen = tree_in(memory).at("/chosen")
        [start], [end] = chosen.quads("linux,initrd-start"), chosen.quads("linux,initrd-end")
        assert start % 4096 == 0
        assert end - start == len(content)
        assert 0 <= 0x44000000 - end < 4096
        assert memory.read(start, len(content)) == content


def test_kernel_and_initramfs_lie_across_zones_of_memory(put: Callable[[bytes], Path], cache: Path) -> None:
    """A guest's memory may be of many regions, which end where they like."""
    data, content = image(size=8 << 20), bytes(range(256)) * 40000
    kernel = load_kernel(put(data), cache=cache)
    starts = [layout.RAM, ADDRESS + 4096, ADDRESS + (4 << 20), layout.RAM + (60 << 20), layout.RAM + (64 << 20)]
    zones = GuestMemory.create([(start, end - start) for start, end in pairwise(starts)])
    try:
        for fresh in (True, False):
            kernel.load_into(zones, fresh=fresh)
            assert b"".join(view for _, view in zones.pieces(ADDRESS, 8 << 20)) == data.ljust(8 << 20, b"\0")
            zones.slice(starts[2], 4)[:] = b"used"
        setup_linux(zones, kernel, "", content, RAM, hardware())
        [start] = tree_in(zones).at("/chosen").quads("linux,initrd-start")
        assert b"".join(view for _, view in zones.pieces(start, len(content))) == content
    finally:
        zones.close()


class Placed:
    """Guest memory of any size, which remembers the first thing put into it; nothing is there."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []

    def pieces(self, address: int, size: int) -> list[tuple[int, memoryview]]:
        self.at.append((address, size))
        return []

    def write(self, address: int, data: bytes) -> None:
        pass


class Huge:
    """An initramfs of `size` bytes that are never there."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, pieces: object, *, zeroed: bool = False) -> None:
        pass


@pytest.mark.parametrize(
    ("size", "gigabytes", "top"),
    [
        (1 << 30, 2, 0xC0000000),
        (1 << 30, 8, 0xFC000000),  # low memory, although there is more above
        (3 << 30, 8, 0x2_44000000),  # does not fit there
        (3 << 30, 64, 0x8_40000000),  # booting.rst: 32 GiB, aligned to 1 GiB, with the kernel in them
        (29 << 30, 64, 0x8_40000000),
    ],
)
def test_initramfs_of_gigabytes(
    size: int, gigabytes: int, top: int, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "initrd_source", lambda initrd: (Huge(size), "initramfs"))
    memory = Placed()
    setup_linux(memory, kernel, "", b"stands for it", ram_ranges(gigabytes << 30), hardware())  # type: ignore[arg-type]
    assert memory.at == [(top - size, size)]


@pytest.mark.parametrize(("size", "gigabytes"), [(2 << 30, 2), (30 << 30, 64), (3 << 30, 3)])
def test_initramfs_of_gigabytes_that_do_not_fit(
    size: int, gigabytes: int, kernel: KernelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "initrd_source", lambda initrd: (Huge(size), "initramfs"))
    with pytest.raises(ImageError, match="but the kernel leaves"):
        setup_linux(Placed(), kernel, "", b"x", ram_ranges(gigabytes << 30), hardware())  # type: ignore[arg-type]


def test_initramfs_that_does_not_fit(kernel: KernelImage, memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"initramfs: 65011712 bytes long.*give the guest more memory"):
        setup_linux(memory, kernel, "", bytes(62 << 20), RAM, hardware())
    with pytest.raises(ImageError, match="is empty"):
        setup_linux(memory, kernel, "", b"", RAM, hardware())
    with pytest.raises(ImageError, match="no such initramfs"):
        setup_linux(memory, kernel, "", "/nonexistent", RAM, hardware())


def test_initramfs_that_fits_into_no_guest(kernel: KernelImage, memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(ImageError, match="in this kernel's reach"):
        setup_linux(memory, kernel, "", path, RAM, hardware())


def test_command_line_as_long_as_it_can_be(kernel: KernelImage, memory: GuestMemory) -> None:
    setup_linux(memory, kernel, "x" * CMDLINE_MAX, None, RAM, hardware())
    assert len(tree_in(memory).at("/chosen").properties["bootargs"]) == 2048
    with pytest.raises(ConfigError, match="2048 bytes long; an arm64 kernel takes 2047"):
        setup_linux(memory, kernel, "x" * 2048, None, RAM, hardware())
    with pytest.raises(ConfigError, match="NUL"):
        setup_linux(memory, kernel, "x\0y", None, RAM, hardware())


def test_the_largest_machine_has_a_tree_of_less_than_2_mib(kernel: KernelImage, memory: GuestMemory) -> None:
    setup_linux(memory, kernel, "", None, RAM, hardware(1024, pci_segments=segments(96)), SEEDS)
    assert len(tree_in(memory).at("/cpus").below("cpu")) == 1024


def test_seeds_are_new_each_time() -> None:
    first, second = fresh_seeds(), fresh_seeds()
    assert first.rng != second.rng
    assert first.kaslr != second.kaslr
    assert len(first.rng) == 64
