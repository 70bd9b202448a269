"""Find a kernel to boot, with its modules: the host's own newest one, or Debian's cloud kernel, of any architecture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.boot import load_kernel
from aiovmm.boot.elf import is_static
from aiovmm.errors import ImageError
from aiovmm.image.debian import package_directory, packages_for

__all__ = [
    "KERNEL_PACKAGES",
    "KernelFiles",
    "cloud_kernel",
    "debian_busybox",
    "debian_kernel",
    "find_kernel",
    "host_kernel",
    "kept_kernel",
    "kernel_parts",
    "kernels_in",
]

KERNEL_PACKAGES = r"linux-image-\d\S+"  # what such a meta-package depends on
_NO_KERNEL = "install one (apt-get install {0}), or use Debian's: aiovmm image kernel --debian"


def cloud_kernel(arch: Architecture | None = None) -> str:
    """Debian's name of the usual kernel of `arch`, by default of this host's."""
    return f"linux-image-cloud-{(arch or architecture.host()).debian}"


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
    raise ImageError(
        "/boot", "; ".join(problems) or "no kernel is installed on this host", _NO_KERNEL.format(cloud_kernel())
    )


def debian_kernel(
    package: str | None = None, cache: str | os.PathLike[str] | None = None, *, arch: Architecture | None = None
) -> KernelFiles:
    """Debian's kernel behind the meta-package `package` (or that package itself), fetched into `cache` if need be.

    The default is the cloud kernel of `arch`, and that is this host's. Blocking; downloads some 30 MB the first time, and for
    another architecture than the host's lists of packages, too. Offline, the newest one in the cache stands in for the usual one.
    Raises ImageError that says what to do.
    """
    wanted = arch or architecture.host()
    usual = cloud_kernel(wanted)
    package = package or usual
    packages = packages_for(wanted, cache)
    real = (packages.dependencies(package, KERNEL_PACKAGES) or [package])[0]
    try:
        root = packages.fetch(real, parts=kernel_parts(real))
    except ImageError:
        if package != usual:
            raise
        try:
            return kept_kernel(cache, arch=arch)
        except ImageError:
            pass
        raise
    found = list(kernels_in(root))
    if not found:
        raise ImageError(real, "is a package without a kernel", f"the usual one is {usual}")
    return found[0]


def kept_kernel(cache: str | os.PathLike[str] | None = None, *, arch: Architecture | None = None) -> KernelFiles:
    """The newest of Debian's kernels that are in `cache`; nothing is fetched or asked for. Raises ImageError."""
    wanted = arch or architecture.host()
    folder = package_directory(wanted, cache)
    kept = [files for root in folder.glob("linux-image-*_*") for files in kernels_in(root)]
    if not kept:
        raise ImageError(str(folder), "there is no kernel of Debian's", "aiovmm image kernel --debian fetches one")
    return max(kept, key=lambda files: _version_key(files.release))


def find_kernel(cache: str | os.PathLike[str] | None = None, *, arch: Architecture | None = None) -> KernelFiles:
    """The host's kernel, or Debian's if the host has none that serves, or where `arch` is another. Raises ImageError with both
    reasons."""
    if arch not in (None, architecture.host()):
        return debian_kernel(cache=cache, arch=arch)
    try:
        return host_kernel()
    except ImageError as host:
        try:
            return debian_kernel(cache=cache)
        except ImageError as exc:
            raise ImageError(exc.path, f"{exc.reason}; and {host}", exc.hint) from exc


def debian_busybox(cache: str | os.PathLike[str] | None = None, *, arch: Architecture | None = None) -> Path:
    """A static busybox for `arch`: this host's if it is one, else from Debian's package, fetched into `cache`.

    Raises ImageError.
    """
    wanted = arch or architecture.host()
    installed = Path("/bin/busybox")
    if installed.is_file() and is_static(installed.read_bytes(), wanted):
        return installed
    root = packages_for(wanted, cache).fetch("busybox-static")
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
