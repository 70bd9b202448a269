"""Find a kernel to boot, with its modules: the host's own newest one, or Debian's cloud kernel."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiovmm import architecture
from aiovmm.boot import load_kernel
from aiovmm.boot.elf import is_static
from aiovmm.errors import ImageError
from aiovmm.image import debian

__all__ = [
    "CLOUD_KERNEL",
    "KERNEL_PACKAGES",
    "KernelFiles",
    "debian_busybox",
    "debian_kernel",
    "find_kernel",
    "host_kernel",
    "kernel_parts",
    "kernels_in",
]

CLOUD_KERNEL = f"linux-image-cloud-{architecture.host().debian}"
KERNEL_PACKAGES = r"linux-image-\d\S+"  # what such a meta-package depends on
_NO_KERNEL = f"install one (apt-get install {CLOUD_KERNEL}), or use Debian's: aiovmm image kernel --debian"


@dataclass(frozen=True)
class KernelFiles:
    """A bootable kernel, the directory of its modules (None if there is none) and its release (`uname -r`)."""

    kernel: Path
    modules: Path | None
    release: str


def host_kernel(root: str | os.PathLike[str] = "/") -> KernelFiles:
    """The newest kernel installed on this host that this user can read and that boots here. Raises ImageError."""
    problems = []
    for files in sorted(kernels_in(Path(root)), key=lambda f: _version_key(f.release), reverse=True):
        try:
            load_kernel(files.kernel, unpack=False)
        except ImageError as exc:
            problems.append(str(exc))
        else:
            return files
    raise ImageError("/boot", "; ".join(problems) or "no kernel is installed on this host", _NO_KERNEL)


def debian_kernel(package: str = CLOUD_KERNEL, cache: str | os.PathLike[str] | None = None) -> KernelFiles:
    """Debian's kernel behind the meta-package `package` (or that package itself), fetched into `cache` if need be.

    Blocking; downloads some 30 MB the first time. Offline, the newest one in the cache stands in for the usual one.
    Raises ImageError that says what to do.
    """
    directory = debian.default_directory() if cache is None else Path(cache)
    real = (debian.dependencies(package, KERNEL_PACKAGES) or [package])[0]
    try:
        root = debian.fetch_package(real, directory, parts=kernel_parts(real))
    except ImageError:
        kept = [f for root in directory.glob("linux-image-*_*") for f in kernels_in(root)]
        if package != CLOUD_KERNEL or not kept:
            raise
        return max(kept, key=lambda f: _version_key(f.release))
    found = list(kernels_in(root))
    if not found:
        raise ImageError(real, "is a package without a kernel", f"the usual one is {CLOUD_KERNEL}")
    return found[0]


def find_kernel(cache: str | os.PathLike[str] | None = None) -> KernelFiles:
    """The host's kernel, or Debian's if the host has none that serves. Raises ImageError with both reasons."""
    try:
        return host_kernel()
    except ImageError as host:
        try:
            return debian_kernel(cache=cache)
        except ImageError as exc:
            raise ImageError(exc.path, f"{exc.reason}; and {host}", exc.hint) from exc


def debian_busybox(cache: str | os.PathLike[str] | None = None) -> Path:
    """A static busybox: this host's if it is one, else from Debian's package, fetched into `cache`. Raises ImageError."""
    installed = Path("/bin/busybox")
    if installed.is_file() and is_static(installed.read_bytes(), architecture.host()):
        return installed
    root = debian.fetch_package("busybox-static", debian.default_directory() if cache is None else Path(cache))
    found = [p for p in (root / "bin/busybox", root / "usr/bin/busybox") if p.is_file()]
    if not found:
        raise ImageError("busybox-static", "is a package without busybox")
    return found[0]


def kernel_parts(package: str) -> str:
    """Names of the packages, as a regular expression, that `linux-image-RELEASE` may leave the kernel to: Debian 14's does."""
    return rf"linux-(?:base|binary|modules)-{re.escape(package.removeprefix('linux-image-'))}"


def kernels_in(root: Path) -> Iterator[KernelFiles]:
    """Kernels where distributions put them: /boot/vmlinuz-RELEASE, /lib/modules/RELEASE/vmlinuz."""
    seen = set()
    for release, path in _candidates(root):
        if release not in seen:
            seen.add(release)
            roots = (root / "lib/modules" / release, root / "usr/lib/modules" / release)
            modules = next((m for m in roots if (m / "kernel").is_dir()), None)
            yield KernelFiles(path, modules, release)


def _candidates(root: Path) -> Iterable[tuple[str, Path]]:
    for path in sorted((root / "boot").glob("vmlinuz-*")):
        yield path.name.removeprefix("vmlinuz-"), path
    for directory in ("lib/modules", "usr/lib/modules"):
        for path in sorted((root / directory).glob("*/vmlinuz")):
            yield path.parent.name, path


def _version_key(release: str) -> list[tuple[int, int, str]]:
    """Order releases as people do: 6.9 before 6.12, numbers before words."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|[^\d.\-+~]+", release)]
