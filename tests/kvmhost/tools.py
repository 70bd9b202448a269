"""The programs of the machine that making and running a nested host takes, and the Debian packages that have them."""

from __future__ import annotations

import os
import shutil

from .arch import Arch

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_BUILD = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "make": "make",
}


def needed_tools(arch: Arch) -> dict[str, str]:
    """What building an image and running a host takes; without root also what makes a user namespace of many users."""
    compiler = {f"{arch.cross}gcc": " ".join(arch.cross_packages) if arch.is_foreign else "gcc"}
    return {**_BUILD, **compiler, **run_tools(arch), **({} if os.geteuid() == 0 else {"newuidmap": "uidmap"})}


def run_tools(arch: Arch) -> dict[str, str]:
    return {arch.qemu: arch.qemu_package}


def missing_tools(tools: dict[str, str]) -> dict[str, str]:
    """Those of `tools` (program: Debian package) that the machine does not have."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    return {tool: package for tool, package in tools.items() if not shutil.which(tool, path=path)}
