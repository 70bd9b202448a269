"""Images for guests: an initramfs builder and a finder of kernels. Blocking functions; call them in a thread from a loop.

files = find_kernel()
image = build_initramfs(busybox=debian_busybox(), modules=files.modules, run="uname -a")
Path("initramfs.cpio").write_bytes(image.data)
"""

from aiovmm.image.initramfs import GUEST_MODULES, Initramfs, build_initramfs
from aiovmm.image.kernel import CLOUD_KERNEL, KernelFiles, debian_busybox, debian_kernel, find_kernel, host_kernel

__all__ = [
    "CLOUD_KERNEL",
    "GUEST_MODULES",
    "Initramfs",
    "KernelFiles",
    "build_initramfs",
    "debian_busybox",
    "debian_kernel",
    "find_kernel",
    "host_kernel",
]
