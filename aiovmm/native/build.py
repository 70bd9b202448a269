"""Build description of the native extension (cffi, API mode, abi3).

Each part of the mechanism has a header `src/NAME.h`, one or several files `src/NAME*.c`, and `cdef/NAME.h` with the declarations
that Python sees. All are collected, so a part is added by adding its files. What exists on one architecture only is in a folder
of its name, in both.
"""

import os
import sysconfig
from pathlib import Path

from cffi import FFI

__all__ = ["TARGET", "ffibuilder", "parts"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

TARGET = sysconfig.get_platform().removeprefix("linux-")
"""The architecture that is built for. For another one set _PYTHON_HOST_PLATFORM=linux-NAME, and CC, as for any package."""


HARDENED = (
    ["-fstack-protector-strong"]
    if "-fsanitize" in os.environ.get("CFLAGS", "")  # which has checks of its own for the same calls
    else ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
)
"""Whatever the interpreter was built with: a stack that is overrun ends the process, and so does a copy beyond its target."""


def parts(folder: str, ending: str) -> list[Path]:
    """The files of `folder` that belong to TARGET."""
    return [*sorted(HERE.glob(f"{folder}/*{ending}")), *sorted(HERE.glob(f"{folder}/{TARGET}/*{ending}"))]


def make_builder() -> FFI:
    """Collect every part below `src/` and `cdef/` into one extension module, `aiovmm.native._native`."""
    if not (HERE / "src" / TARGET).is_dir():
        known = ", ".join(sorted(path.name for path in HERE.glob("src/*/")))
        raise SystemExit(f"aiovmm is not for {TARGET}: it runs on {known}")
    ffi = FFI()
    for cdef in parts("cdef", ".h"):
        ffi.cdef(cdef.read_text(), override=False)
    headers = "\n".join(f'#include "{h.name}"' for h in parts("src", ".h"))
    ffi.set_source(
        "aiovmm.native._native",
        headers,
        sources=[str(c.relative_to(ROOT)) for c in parts("src", ".c")],
        depends=[str(path.relative_to(ROOT)) for path in (*parts("src", ".h"), HERE / "build.py")],
        include_dirs=[str(HERE.relative_to(ROOT) / "src"), str(HERE.relative_to(ROOT) / "src" / TARGET)],
        extra_compile_args=[
            "-std=gnu11",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-fvisibility=hidden",
            "-D_GNU_SOURCE",
            *HARDENED,
        ],
        extra_link_args=["-Wl,-z,relro", "-Wl,-z,now"],
        py_limited_api=True,
    )
    return ffi


ffibuilder = make_builder()
