"""Debian packages, downloaded and unpacked by this user into a cache; nothing is installed and no privilege is needed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from aiovmm import architecture
from aiovmm.architecture import Architecture
from aiovmm.errors import HostError
from aiovmm.image.apt import Apt, foreign_apt
from aiovmm.runtime.flock import flocked, sweep
from aiovmm.runtime.user_dirs import cache_directory

__all__ = ["Packages", "package_directory", "packages_for"]

_BEGUN = ".tmp-"


class Packages:
    """Packages of one architecture, in `cache`, a directory of theirs alone."""

    def __init__(self, cache: Path, apt: Apt) -> None:
        self.cache = cache
        self._apt = apt

    def fetch(self, package: str, *, parts: str = "") -> Path:
        """The directory with the content of `package`, in its candidate version; downloaded only if it is not there yet.

        What `package` depends on of the names that match `parts`, a regular expression, is unpacked with it. Without apt or a
        network, the newest version in the cache serves. Raises ImageError that says what to do.
        """
        version = self._candidate(package)
        if version is None:
            kept = sorted(self.cache.glob(f"{package}_*"), key=lambda p: p.stat().st_mtime)
            if kept:
                return kept[-1]
            raise self._apt.unknown(package)
        target = self.cache / f"{package}_{version.replace(':', '%3a')}"
        if not target.is_dir():
            try:
                self._download(package, version, target, self.dependencies(package, parts) if parts else [])
            except OSError as exc:
                hint = "XDG_CACHE_HOME says where else packages may be kept"
                raise HostError(f"keeping the package {package}", exc.errno or 0, hint, str(self.cache)) from exc
        return target

    def dependencies(self, package: str, pattern: str) -> list[str]:
        """The packages of names that match `pattern` that `package` depends on; none if apt does not know it."""
        text = self._apt.ask("apt-cache", "depends", "--important", package)
        return re.findall(rf"Depends: ({pattern})$", text or "", re.MULTILINE)

    def _candidate(self, package: str) -> str | None:
        text = self._apt.ask("apt-cache", "policy", package)
        found = re.search(r"^  Candidate: (\S+)$", text or "", re.MULTILINE)
        return found[1] if found and found[1] != "(none)" else None

    def _download(self, package: str, version: str, target: Path, parts: list[str]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(target.parent) as scratch:
            self._apt.run(["apt-get", "download", f"{package}={version}", *parts], package, cwd=scratch)
            for archive in sorted(Path(scratch).glob("*.deb")):
                self._apt.run(["dpkg-deb", "-x", str(archive), f"{scratch}/root"], package)
            try:
                os.rename(f"{scratch}/root", target)
            except OSError:
                if not target.is_dir():  # else another process was faster, with the same content
                    raise


@contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    """A directory that is locked, and goes with the block; or with the next one that is made, if this process is killed."""
    sweep(folder.glob(f"{_BEGUN}*"), shutil.rmtree)  # each as large as a package and what is in it
    with ExitStack() as stack:
        while True:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix=_BEGUN))
            with suppress(OSError):  # where nobody can lock nobody sweeps
                stack.enter_context(flocked(scratch, fcntl.LOCK_EX))
            if os.path.isdir(scratch):  # else another has swept it away before it was locked
                break
        yield scratch


def packages_for(wanted: Architecture, cache: str | os.PathLike[str] | None = None) -> Packages:
    """Packages whose programs run on `wanted`, by the machine's own apt if that is this host's architecture.

    `cache` is `$XDG_CACHE_HOME/aiovmm/debian`, by default under ~/.cache; those for another architecture are in a directory
    below. Raises UsageError for a user without a home, ImageError and HostError if there is no list of such packages.
    """
    own = package_directory(wanted, cache)
    if wanted is architecture.host():
        return Packages(own, Apt())
    return Packages(own, foreign_apt(wanted.debian, own / "apt"))


def package_directory(wanted: Architecture, cache: str | os.PathLike[str] | None = None) -> Path:
    """Where packages for `wanted` are kept: see `packages_for`. Raises UsageError."""
    directory = cache_directory() / "debian" if cache is None else Path(cache)
    return directory if wanted is architecture.host() else directory / wanted.debian
