"""From an arm64 kernel file to the boot processor's first instruction.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
ram = ram_ranges(512 << 20)
memory = GuestMemory.create(ram)
image.load_into(memory)
hardware = Hardware(mpidrs, gic_of(len(mpidrs)), segments)
state = setup_linux(memory, image, "console=ttyAMA0", initrd, ram, hardware, fresh_seeds())   # registers for vCPU 0
"""

from __future__ import annotations

from aiovmm.boot.aarch64.hardware import CpuTopology, Hardware, PrimeCell, Seeds
from aiovmm.boot.aarch64.kernel import Entry, KernelImage, KernelKind, load_kernel
from aiovmm.boot.aarch64.layout import Gic, end_of_ram, gic_of, ram_ranges
from aiovmm.boot.aarch64.linux import CpuState, fresh_seeds, setup_linux
from aiovmm.boot.aarch64.tree import device_tree, msi_device_id

__all__ = [
    "CpuState",
    "CpuTopology",
    "Entry",
    "Gic",
    "Hardware",
    "KernelImage",
    "KernelKind",
    "PrimeCell",
    "Seeds",
    "device_tree",
    "end_of_ram",
    "fresh_seeds",
    "gic_of",
    "load_kernel",
    "msi_device_id",
    "ram_ranges",
    "setup_linux",
]
