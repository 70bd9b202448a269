"""What the C floor of each architecture is told, so that it boots what `aiovmm` boots."""

from __future__ import annotations

from pathlib import Path

from aiovmm import architecture
from benchmarks.guest import Files, Word
from benchmarks.programs import program

__all__ = ["floor_command"]


def floor_command(files: Files, mib: int, cmdline: str) -> list[Word]:
    """The command line of the floor for this host; what it needs unpacked or made goes into the folder of `files`."""
    if architecture.host() is architecture.AARCH64:
        return _aarch64(files, mib, cmdline)
    return _x86_64(files, mib, cmdline)


def _x86_64(files: Files, mib: int, cmdline: str) -> list[Word]:
    from aiovmm.boot.x86_64 import load_kernel

    source = load_kernel(files.kernel).source
    view = memoryview(bytearray(source.size))
    source.read_into([(0, view)])
    vmlinux = files.folder / "vmlinux"
    vmlinux.write_bytes(view)
    return [program("floor"), vmlinux, files.initramfs, str(mib), cmdline]


def _aarch64(files: Files, mib: int, cmdline: str) -> list[Word]:
    """Kernel, tree and initramfs where ours would be; of the machine it has what the floor has, and a PCI bus that is empty."""
    from aiovmm.boot.aarch64 import Hardware, device_tree, fresh_seeds, gic_of, layout, load_kernel, ram_ranges
    from aiovmm.boot.fdt import flatten
    from aiovmm.boot.pci import PciSegment, Window

    image = load_kernel(files.kernel)
    content = memoryview(bytearray(image.source.size))
    image.source.read_into([(0, content)])
    size = files.initramfs.stat().st_size
    ram = ram_ranges(mib << 20)
    initrd = (sum(ram[0]) - size) & -layout.PAGE
    bus = PciSegment(
        0, layout.ECAM, Window(layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE), Window(_ABOVE_RAM, layout.PCI_MMIO32_SIZE)
    )
    hardware = Hardware((0,), gic_of(1), (bus,), pmu=_has_pmu(), gpio=None)
    tree = device_tree(hardware, ram, cmdline=cmdline.encode(), initrd=(initrd, size), seeds=fresh_seeds())
    kernel = _put(files.folder / "Image", content)
    blob = _put(files.folder / "tree.dtb", flatten(tree))
    places = [f"{kernel}@{image.entry.address}", f"{blob}@{layout.FDT}", f"{files.initramfs}@{initrd}"]
    return [program("floor"), str(mib), str(image.entry.address), str(layout.FDT), *places]


def _has_pmu() -> bool:
    from aiovmm.kvm import Kvm

    with Kvm.open() as kvm:
        return kvm.capability(_CAP_ARM_PMU_V3) > 0


_CAP_ARM_PMU_V3 = 126
_ABOVE_RAM = 1 << 40


def _put(path: Path, data: bytes | memoryview) -> Path:
    path.write_bytes(data)
    return path
