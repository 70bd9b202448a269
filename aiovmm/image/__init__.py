"""Images for guests: an initramfs builder and a finder of kernels. Blocking functions; call them in a thread from a loop.

files = find_kernel()
image = build_initramfs(busybox=debian_busybox(), modules=files.modules, run="uname -a")
Path("initramfs.cpio").write_bytes(image.data)
"""

from aiovmm.image.initramfs import GUEST_MODULES, Initramfs, build_initramfs
from aiovmm.image.kernel import (
    KernelFiles,
    cloud_kernel,
    debian_busybox,
    debian_kernel,
    find_kernel,
    host_kernel,
    kept_kernel,
)

__all__ = [
    "GUEST_MODULES",
    "Initramfs",
    "KernelFiles",
    "build_initramfs",
    "cloud_kernel",
    "debian_busybox",
    "debian_kernel",
    "find_kernel",
    "host_kernel",
    "kept_kernel",
]
