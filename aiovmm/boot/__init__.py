"""From a kernel file to the boot processor's first instruction; x86-64.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
ram = ram_ranges(512 << 20)
memory = GuestMemory.create(ram)
image.load_into(memory)
state = setup_linux(memory, image, "console=ttyS0", initrd, ram, rsdp)   # registers for vCPU 0
"""

from aiovmm.boot.cpu import CpuState, boot_msrs
from aiovmm.boot.cpuid import CpuidEntry, CpuTopology
from aiovmm.boot.kernel import BootProtocol, Entry, KernelImage, KernelKind, load_kernel
from aiovmm.boot.layout import ram_ranges
from aiovmm.boot.linux import setup_linux

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
