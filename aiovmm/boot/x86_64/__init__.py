"""Linux and PVH on a PC.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
ram = ram_ranges(512 << 20)
memory = GuestMemory.create(ram)
image.load_into(memory)
state = setup_linux(memory, image, "console=ttyS0", initrd, ram, rsdp)   # registers for vCPU 0
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiovmm.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from aiovmm.boot.x86_64.cpu import CpuState, boot_msrs
    from aiovmm.boot.x86_64.cpuid import CpuidEntry, CpuTopology
    from aiovmm.boot.x86_64.kernel import BootProtocol, Entry, KernelImage, KernelKind, load_kernel
    from aiovmm.boot.x86_64.layout import ram_ranges
    from aiovmm.boot.x86_64.linux import setup_linux

__all__ = [
    "BootProtocol",
    "CpuState",
    "CpuTopology",
    "CpuidEntry",
    "Entry",
    "KernelImage",
    "KernelKind",
    "boot_msrs",
    "load_kernel",
    "ram_ranges",
    "setup_linux",
]

__getattr__ = lazy_names(  # a machine that goes on from a snapshot loads no kernel
    __name__,
    {
        "aiovmm.boot.x86_64.cpu": "CpuState boot_msrs",
        "aiovmm.boot.x86_64.cpuid": "CpuidEntry CpuTopology",
        "aiovmm.boot.x86_64.kernel": "BootProtocol Entry KernelImage KernelKind load_kernel",
        "aiovmm.boot.x86_64.layout": "ram_ranges",
        "aiovmm.boot.x86_64.linux": "setup_linux",
    },
)
