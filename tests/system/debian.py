"""Programs of Debian's for guests, with the libraries that they are linked with.

They are fetched once, where tests are collected, and go to the nested hosts with the tree, which has no room for whole packages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from aiovmm.runtime.user_dirs import cache_directory
from tests.debian import Archive, ArchiveError, Unpacked
from tests.system.programs import BIN

__all__ = ["bring_debian", "debian_files"]

_WITH_LIBRARIES = ("systemd", "numactl", "dmidecode", "util-linux")  # packages
_ALONE = ("cloud-init",)
_PROGRAMS = ("lib/systemd/systemd", "bin/systemd-creds", "usr/bin/numactl", "usr/sbin/dmidecode", "usr/bin/lscpu")
_SCRIPTS = ("usr/lib/cloud-init/ds-identify",)
_OF_SYSTEMD = "usr/lib/x86_64-linux-gnu/systemd"  # where its programs look for its own libraries
_LOADER = "lib64/ld-linux-x86-64.so.2"
_THERE = BIN / "x86_64" / "debian"


def bring_debian() -> None:
    """Have the programs in the tree, if they are not and an archive can be reached."""
    if _THERE.exists():
        return
    kept = cache_directory() / "stock" / "programs"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=kept.parent) as scratch:
        if not kept.exists():
            root, picked = Path(scratch, "root"), Path(scratch, "picked")
            try:
                archive = Archive("bookworm", Path(scratch, "apt"))
                archive.unpack_with_dependencies(_WITH_LIBRARIES, root)
                archive.unpack(_ALONE, root)
            except ArchiveError:
                return
            _pick(root, picked)
            _put(picked, kept)
        _THERE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(kept, Path(scratch, "copy"))
        _put(Path(scratch, "copy"), _THERE)


def _put(made: Path, place: Path) -> None:
    """Unless another process was first."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise


def _pick(root: Path, target: Path) -> None:
    libraries, loader = _linked(root)
    wanted = {name: root / name for name in (*_PROGRAMS, *_SCRIPTS, *libraries)} | {_LOADER: loader}
    for name, path in wanted.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path.resolve(), target / name)


def _linked(root: Path) -> tuple[set[str], Path]:
    """All libraries of the programs by their places in the tree, and the loader."""
    found = set()
    for program in _PROGRAMS:
        loader, option, path, *_ = Unpacked(root).command(program)
        command = [loader, option, f"{path}:{root / _OF_SYSTEMD}", "--list", str(root / program)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        paths = re.findall(r"(/\S+) \(0x", listing)
        found |= {str(Path(path).relative_to(root)) for path in paths if path.startswith(f"{root}/")}
    return found, Path(loader)


def debian_files() -> dict[str, Path] | None:
    """{path in a guest: file}; None where they could not be had."""
    files = (path for path in _THERE.rglob("*") if path.is_file())
    return {f"/{path.relative_to(_THERE)}": path for path in files} or None
