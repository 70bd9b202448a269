"""Which QEMU a nested host runs in: a newer one than the machine's where Debian's archive can be reached.

QEMU 7.2's AMD-V does not intercept XSETBV: KVM does not learn what its guest enabled and shows it sizes of states that are not
so, and Linux 7 does not boot ("XSAVE consistency problem"). Debian sid's QEMU is unpacked beside the machine's with all its
libraries, the C library's loader too, and run by that loader: nothing is installed.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.debian import Archive, ArchiveError, Unpacked

from .arch import X86_64, Arch
from .lock import HostLock

SUITE = "sid"
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/systemd", "etc", "var")
_RETRY_SECONDS = 86400.0  # until an archive that could not be reached is tried again
Say = Callable[[str], None]


@dataclass(frozen=True)
class Qemu:
    """How to run it: the words before its arguments, and what its environment has to say. `notice`: why it is not a newer one."""

    command: tuple[str, ...] = (X86_64.qemu,)
    environment: Mapping[str, str] = field(default_factory=dict)
    notice: str = ""


def ensure_qemu(cache: pathlib.Path, env: Mapping[str, str], say: Say, arch: Arch, *, force: bool = False) -> Qemu:
    """The newer QEMU, fetched if it is not there; the machine's own, with a notice, if it cannot be had.

    `$AIOVMM_KVMHOST_QEMU`, for arm64 `$AIOVMM_KVMHOST_QEMU_AARCH64`, is another program to take instead.
    """
    chosen = env.get("AIOVMM_KVMHOST_QEMU" if arch == X86_64 else f"AIOVMM_KVMHOST_QEMU_{arch.name.upper()}")
    if chosen:
        return Qemu((chosen,))
    directory = cache / "qemu" / _key(arch)
    refused = directory.with_suffix(".refused")
    if force or not (directory.exists() or _is_recent(refused)):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with HostLock(cache / "qemu.lock", say):
            if force or not directory.exists():
                _fetch(arch, directory, refused, say)
    if directory.exists():
        return unpacked(directory, arch)
    lacking = f", under which {arch.newest_needs}" if arch.newest_needs else ""
    return Qemu((arch.qemu,), notice=f"the machine's own QEMU{lacking}: {refused.read_text().strip()}")


def unpacked(root: pathlib.Path, arch: Arch) -> Qemu:
    """The QEMU in a tree of unpacked packages, run with the libraries, modules and firmware of that tree."""
    firmware = ("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios"))
    modules = root / "usr/lib/x86_64-linux-gnu/qemu"
    return Qemu((*Unpacked(root).command(f"usr/bin/{arch.qemu}"), *firmware), {"QEMU_MODULE_DIR": str(modules)})


def _key(arch: Arch) -> str:
    return hashlib.sha256(json.dumps([SUITE, [arch.qemu_package], _UNUSED]).encode()).hexdigest()[:16]


def _is_recent(path: pathlib.Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime < _RETRY_SECONDS


def _fetch(arch: Arch, directory: pathlib.Path, refused: pathlib.Path, say: Say) -> None:
    say(f"fetching {arch.qemu} of Debian {SUITE} (once)")
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=directory.parent) as name:
        place = pathlib.Path(name)
        try:
            Archive(SUITE, place / "apt").unpack_with_dependencies([arch.qemu_package], place / "root")
        except ArchiveError as error:
            refused.write_text(f"{error}\n")
            return
        for unused in _UNUSED:
            shutil.rmtree(place / "root" / unused, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(directory)
        (place / "root").rename(directory)
        refused.unlink(missing_ok=True)
