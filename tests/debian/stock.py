"""The stock kernels that guests are tried with, whatever Debian the machine is: fetched once, unpacked in the user's cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from aiovmm.image import KernelFiles
from aiovmm.image.kernel import kernels_in
from aiovmm.runtime.user_dirs import cache_directory

from .archive import Archive, ArchiveError

# By the name that tests and the nested host call it: the release of Debian, and the package there that depends on the newest.
STOCK_KERNELS = {
    "6.1": ("bookworm", "linux-image-cloud-amd64"),
    "6.12": ("bookworm", "linux-image-6.12-cloud-amd64"),
    "newest": ("sid", "linux-image-cloud-amd64"),
}


def stock_kernel(name: str, architecture: str = "amd64") -> KernelFiles:
    """The kernel of that name in STOCK_KERNELS, or its like for another of Debian's architectures. ArchiveError if it is not in
    the cache and cannot be had."""
    target = cache_directory() / "stock" / (name if architecture == "amd64" else f"{name}-{architecture}")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=target.parent) as scratch:
            suite, package = STOCK_KERNELS[name]
            archive = Archive(suite, Path(scratch, "apt"), architecture)
            archive.unpack_kernel(package.replace("amd64", architecture), Path(scratch, "root"))
            try:
                os.rename(f"{scratch}/root", target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
    return next(kernels_in(target))


def stock_kernel_or_skip(name: str, architecture: str = "amd64") -> KernelFiles:
    """The same in a test, which is skipped without it."""
    try:
        return stock_kernel(name, architecture)
    except ArchiveError as error:
        pytest.skip(f"no Debian kernel {name} for {architecture}: {error}")
