"""The packages of one Debian release by an apt of their own: nothing is installed, and no privilege is needed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from aiovmm.image import KernelFiles
from aiovmm.image.kernel import KERNEL_PACKAGES, kernel_parts, kernels_in

from .sources import NoSources, sources

_TIMEOUT = 900.0  # seconds for all that one command fetches


class ArchiveError(Exception):
    """The archive cannot be reached, or does not have what was asked for."""


class Archive:
    """Packages of Debian's `suite`. All that its apt keeps is in `directory`; nothing of the machine's installation counts.

    `architecture` is Debian's name of another than the machine's own. Blocking. Every method raises ArchiveError with apt's own
    last words.
    """

    def __init__(self, suite: str, directory: Path, architecture: str = "") -> None:
        self._suite = suite
        self._directory = directory
        self._architecture = architecture
        self._ready = False

    def dependencies(self, package: str, pattern: str) -> list[str]:
        """The packages matching `pattern`, a regular expression, that `package` depends on."""
        said = self._run("apt-cache", "depends", "--important", package)
        return re.findall(rf"^ *Depends: ({pattern})$", said, re.MULTILINE)

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        """Fetch the newest of `packages`, and nothing that they need, and unpack it into `target`."""
        self._fetch("download", *packages, into=target)

    def unpack_with_dependencies(self, packages: Sequence[str], target: Path) -> None:
        """Fetch `packages` and all that they need, the C library included, and unpack it into `target`."""
        self._fetch("install", "-y", "--download-only", "--no-install-recommends", *packages, into=target)

    def unpack_kernel(self, package: str, target: Path) -> KernelFiles:
        """The newest kernel behind the meta-package `package`, in `target`, which was empty."""
        real = self.dependencies(package, KERNEL_PACKAGES)
        if not real:
            raise ArchiveError(f"{package} of Debian {self._suite} depends on no kernel")
        self.unpack([real[0], *self.dependencies(real[0], kernel_parts(real[0]))], target)
        found = list(kernels_in(target))
        if not found:
            raise ArchiveError(f"{real[0]} of Debian {self._suite} is a package without a kernel")
        return found[0]

    def _fetch(self, *command: str, into: Path) -> None:
        archives = self._prepare() / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        self._run("apt-get", "-qq", *command, cwd=archives)
        fetched = sorted(archives.glob("*.deb"))
        for path in fetched:
            self._run("dpkg-deb", "-x", str(path), str(into))
            path.unlink()

    def _prepare(self) -> Path:
        """The directory with the lists of today in it."""
        if self._ready:
            return self._directory
        for name in ("lists/partial", "archives/partial"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        try:
            lines = sources(self._suite)
        except NoSources as error:
            raise ArchiveError(str(error)) from error
        (self._directory / "sources.list").write_text("".join(f"deb {line}\n" for line in lines))
        (self._directory / "status").touch()
        self._ready = True
        self._run("apt-get", "-qq", "update", "--error-on=any")
        return self._directory

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        directory = self._prepare()
        (directory / "apt.conf").write_text(_configuration(directory, self._architecture))
        env = {**os.environ, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C"}
        try:
            done = subprocess.run(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ArchiveError(f"{command[0]}: {error}") from error
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if not line.startswith("W:")] or [str(done.returncode)]
            raise ArchiveError(f"{command[0]} failed for Debian {self._suite}: {words[-1].strip()}")
        return done.stdout


def _configuration(directory: Path, architecture: str) -> str:
    """Where this apt keeps things. It needs no user of its own: what it fetches is checked by signature, and nobody runs it."""
    named = (
        f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n' if architecture else ""
    )
    return f"""{named}Dir::Etc::SourceList "{directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "{directory}";
Dir::State::Lists "{directory}/lists";
Dir::State::Status "{directory}/status";
Dir::Cache "{directory}";
Dir::Cache::Archives "{directory}/archives";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
"""
