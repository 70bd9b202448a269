"""Debian packages, downloaded and unpacked by this user into a cache; nothing is installed and no privilege is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from aiovmm.errors import HostError, ImageError
from aiovmm.runtime.user_dirs import cache_directory

__all__ = ["default_directory", "dependencies", "fetch_package"]

_TIMEOUT = 600  # seconds for a download


def default_directory() -> Path:
    """`$XDG_CACHE_HOME/aiovmm/debian`, by default under ~/.cache. Raises UsageError for a user without a home."""
    return cache_directory() / "debian"


def fetch_package(package: str, cache: Path, *, parts: str = "") -> Path:
    """The directory with the content of `package`, in its candidate version; downloaded only if it is not there yet.

    What `package` depends on of the names that match `parts`, a regular expression, is unpacked with it. Without apt or a
    network, the newest version in the cache serves. Raises ImageError that says what to do.
    """
    version = _candidate(package)
    if version is None:
        kept = sorted(cache.glob(f"{package}_*"), key=lambda p: p.stat().st_mtime)
        if kept:
            return kept[-1]
        raise _unknown(package)
    target = cache / f"{package}_{version.replace(':', '%3a')}"
    if not target.is_dir():
        try:
            _download(package, version, target, dependencies(package, parts) if parts else [])
        except OSError as exc:
            hint = "XDG_CACHE_HOME says where else packages may be kept"
            raise HostError(f"keeping the package {package}", exc.errno or 0, hint, str(cache)) from exc
    return target


def dependencies(package: str, pattern: str) -> list[str]:
    """The packages of names that match `pattern` that `package` depends on; none if apt does not know it."""
    text = _output(["apt-cache", "depends", "--important", package])
    return re.findall(rf"Depends: ({pattern})$", text or "", re.MULTILINE)


def _candidate(package: str) -> str | None:
    text = _output(["apt-cache", "policy", package])
    found = re.search(r"^  Candidate: (\S+)$", text or "", re.MULTILINE)
    return found[1] if found and found[1] != "(none)" else None


def _unknown(package: str) -> ImageError:
    if shutil.which("apt-get") is None:
        return ImageError(package, "cannot be fetched: this is not a Debian system", "give a kernel with --kernel")
    return ImageError(package, "apt does not know this package", "run: sudo apt-get update")


def _download(package: str, version: str, target: Path, parts: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
        _run(["apt-get", "download", f"{package}={version}", *parts], package, cwd=scratch)
        for archive in sorted(Path(scratch).glob("*.deb")):
            _run(["dpkg-deb", "-x", str(archive), f"{scratch}/root"], package)
        try:
            os.rename(f"{scratch}/root", target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise


def _run(command: list[str], package: str, cwd: str | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, timeout=_TIMEOUT)
    except FileNotFoundError as exc:
        raise ImageError(package, f"cannot be fetched: no program {command[0]}", "give a kernel with --kernel") from exc
    except subprocess.TimeoutExpired as exc:
        raise ImageError(package, f"{command[0]} took longer than {_TIMEOUT} s", "is the network up?") from exc
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in said if not line.startswith("W:")] or said
        reason = f"{command[0]} failed: {errors[-1] if errors else exc.returncode}"
        raise ImageError(package, reason, "run: sudo apt-get update") from exc


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
