"""Peers that are Python packages: pip fetches their wheels here, and installs them in the nested host, which has no network."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["PLACE", "bring"]

PLACE = Path("/var/tmp/aiovmm-peers")
"""Where they are in the nested host; in the path of those programs alone that are to find them."""


def bring(peers: Iterable[str], arch: str) -> None:
    """Those that are not there yet. One that cannot be had is said, and left out."""
    for peer in peers:
        try:
            if _host(arch, "run", "--", "test", "-d", str(PLACE / peer)):
                _install(peer, arch)
        except subprocess.CalledProcessError as exc:
            print(f"{peer} is left out: {' '.join(map(str, exc.cmd))} ended with {exc.returncode}", file=sys.stderr)


def _install(peer: str, arch: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(peer, arch, Path(folder))
        there = f"/var/tmp/{wheel.name}"
        _host(arch, "put", str(wheel), there, check=True)
    install = ["python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    _host(arch, "run", "--timeout", "600", "--", *install, "--target", str(PLACE), there, check=True)


def _download(peer: str, arch: str, folder: Path) -> Path:
    """Its newest wheel for the Python there."""
    from tests.kvmhost.settings import PYTHON_VERSION

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    command += [f"--python-version={PYTHON_VERSION}", "--implementation=cp"]
    command += [f"--abi=cp{PYTHON_VERSION.replace('.', '')}", "--abi=abi3"]
    command += [f"--platform=manylinux_2_{minor}_{arch}" for minor in (36, 34, 31, 28, 17)]
    subprocess.run([*map(str, command), peer], check=True)
    return next(folder.glob("*.whl"))


def _host(arch: str, *words: str, check: bool = False) -> int:
    command = [sys.executable, "-m", "tests.kvmhost", "--arch", arch, *words]
    return subprocess.run(command, check=check).returncode
