"""Build description of the native extension (cffi, API mode, abi3).

Each part of the mechanism has a header `src/NAME.h`, one or several files `src/NAME*.c`, and `cdef/NAME.h` with the declarations
that Python sees. All are collected, so a part is added by adding its files.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def make_builder() -> FFI:
    """Collect every part below `src/` and `cdef/` into one extension module, `aiovmm.native._native`."""
    ffi = FFI()
    for cdef in sorted(HERE.glob("cdef/*.h")):
        ffi.cdef(cdef.read_text(), override=False)
    headers = "\n".join(f'#include "{h.name}"' for h in sorted(HERE.glob("src/*.h")))
    ffi.set_source(
        "aiovmm.native._native",
        headers,
        sources=[str(c.relative_to(ROOT)) for c in sorted(HERE.glob("src/*.c"))],
        depends=[str(h.relative_to(ROOT)) for h in sorted(HERE.glob("src/*.h"))],
        include_dirs=[str(HERE.relative_to(ROOT) / "src")],
        extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-fvisibility=hidden", "-D_GNU_SOURCE"],
        py_limited_api=True,
    )
    return ffi


ffibuilder = make_builder()
