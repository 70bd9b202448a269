"""From a kernel file to the boot processor's first instruction. What is an architecture's is in its room: x86_64.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
"""

from aiovmm.boot.x86_64 import KernelImage, load_kernel

__all__ = ["KernelImage", "load_kernel"]
