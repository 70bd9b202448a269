"""The C mechanism: vCPU run loop, ring operations, batch I/O. `ffi` and `lib` are cffi's own objects.

C does what Python cannot do fast or safely and knows nothing of any device; policy stays in Python.
"""

from __future__ import annotations

from typing import Any

from aiovmm.runtime import threads

try:
    from aiovmm.native._native import ffi as _ffi
    from aiovmm.native._native import lib as _lib
except ImportError as exc:  # pragma: no cover - only in a broken checkout
    raise ImportError(
        f"aiovmm's native extension is not built or does not load ({exc}); "
        "run `make native` in a checkout, or `pip install .` to install the package"
    ) from exc

ffi: Any = _ffi
lib: Any = _lib
threads.set_system_name = lib.avmm_name_thread  # one system call

__all__ = ["ffi", "lib"]
