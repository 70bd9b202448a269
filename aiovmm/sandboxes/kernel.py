"""What a sandbox boots: a kernel with the drivers it needs, and an initramfs with those and the agent, made once and kept."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from importlib import resources
from pathlib import Path

from aiovmm.agent import agent_binary
from aiovmm.errors import HostError, ImageError
from aiovmm.image import KernelFiles, build_initramfs, debian_busybox, debian_kernel, host_kernel, kept_kernel
from aiovmm.image.modules import ModuleTree
from aiovmm.runtime.new_file import appearing
from aiovmm.runtime.newest import keep_newest
from aiovmm.runtime.user_dirs import cache_directory

__all__ = ["MODULES", "find_sandbox_kernel", "sandbox_initramfs"]

MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "virtio_net",
    "virtiofs",
    "virtio_balloon",
    "squashfs",
)
"""Drivers that are in the initramfs as far as a kernel has them as modules."""

_KEPT = 32  # initramfses, one a kernel and a version of what is in it

_NEEDED = ("virtio_blk", "vmw_vsock_virtio_transport", "erofs", "overlay")
_HINT = "Debian's cloud kernel has all of them: aiovmm image kernel --debian"


def find_sandbox_kernel() -> KernelFiles:
    """The host's own kernel, or Debian's cloud kernel, kept from before or fetched now: the first that has the drivers. Blocking.
    Raises ImageError with all reasons."""
    problems = []
    for find in (host_kernel, kept_kernel, debian_kernel):
        try:
            files = find()
            check_drivers(files)
        except ImageError as exc:
            problems.append(f"{exc.path}: {exc.reason}")
        else:
            return files
    raise ImageError(
        "kernel", f"none serves for a sandbox: {'; '.join(problems)}", "give one by kernel=KernelFiles(...)"
    )


def check_drivers(files: KernelFiles) -> None:
    """Raises ImageError if a driver is neither built in nor a module. Of a kernel without modules nothing is known."""
    if files.modules is None:
        return
    tree = ModuleTree(files.modules)
    missing = [name for name in _NEEDED if name not in tree and name not in tree.builtin]
    if missing and not tree.builtin:  # a directory without modules.builtin: what is not there may be built in
        missing = []
    if missing:
        raise ImageError(str(files.kernel), f"lacks the drivers {', '.join(missing)}", _HINT)


def sandbox_initramfs(files: KernelFiles) -> Path:
    """The initramfs for `files`, in the cache. Blocking. Raises ImageError, HostError."""
    busybox, agent = debian_busybox(), agent_binary()
    script = resources.files("aiovmm.sandboxes").joinpath("init.sh").read_bytes()
    key = hashlib.sha256(script + agent.read_bytes() + repr(MODULES).encode())
    for path in (busybox, files.modules):
        if path is not None:
            status = path.stat()
            key.update(repr((str(path), status.st_ino, status.st_size, status.st_mtime_ns)).encode())
    folder = cache_directory() / "initramfs"
    target = folder / f"{key.hexdigest()}.cpio"
    if not target.exists():
        image = build_initramfs(busybox=busybox, modules=files.modules, wanted=MODULES, init=script, agent=agent)
        _keep(folder, target, image.data)
    else:
        with suppress(OSError):
            os.utime(target)  # it stays longest
    return target


def _keep(folder: Path, target: Path, data: bytes) -> None:
    """Whole, or not at all; of two who do it at once one stays, and they are equal."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with appearing(target, replacing=True) as fd, open(fd, "wb", closefd=False) as file:
            file.write(data)
        keep_newest(folder, _KEPT)
    except OSError as exc:
        hint = "XDG_CACHE_HOME says where else it may be kept"
        raise HostError("keep an initramfs", exc.errno or 0, hint, str(folder)) from exc
