"""A kernel with iommufd for the nested host: Debian's 6.12, with the modules that are missing there or different with it.

They are built from Debian's own source of that kernel against its headers, once, and kept beside the images. Nothing else of the
kernel is different: iommufd is a module, and asks of the rest what every kernel with an IOMMU has.
"""

from __future__ import annotations

import lzma
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from aiovmm.image import KernelFiles
from tests.debian import Archive, ArchiveError
from tests.debian.stock import STOCK_KERNELS, stock_kernel

from .errors import BuildFailed, MissingTool
from .image import Image
from .lock import HostLock
from .tools import missing_tools

KERNEL = "6.12"
_TOOLS = {"x86_64-linux-gnu-gcc-12": "gcc-12", "make": "make", "xz": "xz-utils", "strip": "binutils"}
_SCRIPT = pathlib.Path(__file__).with_name("iommufd_build.sh")
# In the order in which they are loaded, as lines of insmod.
_MODULES = ("iommufd.ko allow_unsafe_interrupts=1", "vfio.ko", "vfio_iommu_type1.ko", "vfio-pci-core.ko", "vfio-pci.ko")
_DISK = "virtio_blk.ko"  # all that the disk needs which is a module there
Say = Callable[[str], None]


@dataclass(frozen=True)
class IommufdImage(Image):
    """An image that the kernel in `place` boots; its disk has that kernel's other modules."""

    place: pathlib.Path

    @property
    def kernel(self) -> pathlib.Path:
        return self.place / "vmlinuz"

    @property
    def boot(self) -> pathlib.Path:
        return self.place / "boot"


def with_iommufd(cache: pathlib.Path, image: Image, say: Say) -> IommufdImage:
    """The same image, to be booted by a kernel that has iommufd; built if it is not there. MissingTool, BuildFailed."""
    try:
        files = stock_kernel(KERNEL)
    except ArchiveError as error:
        raise BuildFailed(f"no kernel {KERNEL}: {error}") from error
    place = cache / f"iommufd-{files.release}"
    if not place.exists():
        if missing := missing_tools(_TOOLS):
            raise MissingTool(missing)
        with HostLock(cache / "iommufd.lock", say):
            if not place.exists():
                say(f"building iommufd for Linux {files.release} (once; takes a minute or two)")
                _build(files, image, place)
    return IommufdImage(image.directory, place)


def _build(files: KernelFiles, image: Image, place: pathlib.Path) -> None:
    assert files.modules is not None, "a stock kernel has some"
    with tempfile.TemporaryDirectory(prefix="building-", dir=place.parent) as name:
        root, out = pathlib.Path(name, "root"), pathlib.Path(name, "out")
        drivers = out / "boot/drivers"
        for directory in (root, drivers):
            directory.mkdir(parents=True)
        _fetch(files.release, root, pathlib.Path(name, "apt"))
        done = subprocess.run(["sh", str(_SCRIPT), str(root), str(drivers)], capture_output=True, text=True)
        if done.returncode:
            raise BuildFailed(f"building iommufd failed:\n{(done.stdout + done.stderr)[-2000:]}")
        (drivers / "order").write_text("".join(f"{line}\n" for line in _MODULES))
        shutil.copy(files.kernel, out / "vmlinuz")
        shutil.copy(image.boot / "busybox", out / "boot/busybox")
        (packed,) = files.modules.rglob(f"{_DISK}*")
        data = packed.read_bytes()
        (out / "boot" / _DISK).write_bytes(lzma.decompress(data) if packed.suffix == ".xz" else data)
        (out / "boot/order").write_text(f"{_DISK}\n")
        os.rename(out, place)


def _fetch(release: str, root: pathlib.Path, apt: pathlib.Path) -> None:
    plain = release.removesuffix("-cloud-amd64")
    headers = (f"linux-headers-{release}", f"linux-headers-{plain}-common", f"linux-kbuild-{plain}")
    try:
        Archive(STOCK_KERNELS[KERNEL][0], apt).unpack([f"linux-source-{KERNEL}", *headers], root)
    except ArchiveError as error:
        raise BuildFailed(f"no source or headers of Linux {release}: {error}") from error
