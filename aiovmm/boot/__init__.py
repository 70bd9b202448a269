"""From a kernel file to the boot processor's first instruction. What is an architecture's is in its room: x86_64, aarch64.

image = load_kernel("/boot/vmlinuz-...")             # examined, unpacked, cached; before any VM exists
"""

from aiovmm.boot.kernel import KernelImage, load_kernel

__all__ = ["KernelImage", "load_kernel"]
