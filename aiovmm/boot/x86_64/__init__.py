"""Linux and PVH on a PC.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
ram = ram_ranges(512 << 20)
memory = GuestMemory.create(ram)
image.load_into(memory)
state = setup_linux(memory, image, "console=ttyS0", initrd, ram, rsdp)   # registers for vCPU 0
"""

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
