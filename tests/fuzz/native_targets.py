"""The targets in C: which sources each is linked with, and how it is compiled."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import aiovmm.agent
import aiovmm.native

__all__ = ["CLANG", "NATIVE", "build"]

CLANG = shutil.which("clang") or shutil.which("clang-14")
HERE = Path(__file__).resolve().parent / "native"
SOURCE = Path(aiovmm.native.__file__).resolve().parent / "src"

_RING = ("ring*.c", "mem.c", "guard.c")
NATIVE: dict[str, tuple[str, ...]] = {
    "ring": _RING,
    "stream": ("stream.c", *_RING),
    "frames": ("frames.c", *_RING),
    "net": ("tap_*.c", "nowait.c", *_RING),
    "blk": ("blk*.c", "uring.c", "nowait.c", *_RING),
    "exits": ("vcpu.c", "vcpu_access.c", "vcpu_ring.c", "drain.c", "pace.c", "guard.c", "x86_64/*.c"),
    "pages": ("pages.c",),
    "guest_agent": ("[!m]*.c",),  # all but main.c, which the target has in itself
}
"""By name, patterns in aiovmm/native/src, or in another folder (`_FOLDERS`)."""

_FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-pthread"]
_SANITIZE = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
_DEFINES = {
    "exits": ["-Dioctl=fake_ioctl", "-Dsyscall=fake_syscall"],
    "guest_agent": ["-DHOSTED", "-DFUZZED"],
}
_FOLDERS = {"guest_agent": Path(aiovmm.agent.__file__).resolve().parent / "guest"}


def build(name: str, folder: Path) -> Path:
    """Compile one, a libFuzzer program."""
    assert CLANG is not None
    program = folder / name
    folder_of = _FOLDERS.get(name, SOURCE)
    sources = [path for pattern in NATIVE[name] for path in sorted(folder_of.glob(pattern))]
    include = ["-I", str(folder_of), "-I", str(folder_of / "x86_64")]
    command = [CLANG, *_FLAGS, *_SANITIZE, *_DEFINES.get(name, []), *include, "-o", str(program)]
    subprocess.run([*command, str(HERE / f"fuzz_{name}.c"), *map(str, sources)], check=True)
    return program
