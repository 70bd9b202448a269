"""The native extension compiles for the other architecture as well, without a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CC = "aarch64-linux-gnu-gcc"
ELF_AARCH64 = 183  # e_machine


def build(target: str, directory: Path, cc: str) -> subprocess.CompletedProcess[str]:
    """Build the extension for `target` below `directory`, warnings being errors."""
    own = Path(
        f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}/python{sysconfig.get_python_version()}/pyconfig.h"
    )
    if own.exists():  # Debian's Python has one for each architecture; this one's will do, the sizes are the same
        place = directory / f"include/{target}-linux-gnu/python{sysconfig.get_python_version()}"
        place.mkdir(parents=True)
        shutil.copy(own, place)
    environment = {
        **os.environ,
        "_PYTHON_HOST_PLATFORM": f"linux-{target}",
        "CC": cc,
        "LDSHARED": f"{cc} -shared",
        "CFLAGS": f"-Werror -O0 -I{directory}/include",
    }
    places = ["--build-lib", str(directory / "lib"), "--build-temp", str(directory / "tmp")]
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext", *places]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.timeout(300)
def test_it_builds_for_aarch64(tmp_path: Path) -> None:
    done = build("aarch64", tmp_path, CC)
    assert done.returncode == 0, done.stdout + done.stderr
    header = (tmp_path / "lib/aiovmm/native/_native.abi3.so").read_bytes()[:20]
    assert (header[:4], int.from_bytes(header[18:20], "little")) == (b"\x7fELF", ELF_AARCH64)


def test_an_architecture_that_there_is_no_code_for_is_named(tmp_path: Path) -> None:
    done = build("riscv64", tmp_path, "cc")
    assert done.returncode != 0
    assert "aiovmm is not for riscv64: it runs on aarch64, x86_64" in done.stderr
