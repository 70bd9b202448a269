"""What a process that runs guests may have at most (setrlimit(2)), once it has what it needs."""

from __future__ import annotations

import os

from aiovmm.errors import HostError
from aiovmm.native import lib

__all__ = ["limit_resources"]

_THREADS = 4096
"""Of all processes of the user together: many guests' worth, and no flood. Nobody counts root's."""


def limit_resources() -> None:
    """No core file, which would have what devices hold for a guest; not more descriptors than now, whoever asks; and of a user
    that is not root a bounded number of threads. Lower limits stay. Raises HostError."""
    _lower(lib.RLIMIT_CORE, 0)
    _lower(lib.RLIMIT_NOFILE, lib.AVMM_AS_NOW)
    if os.geteuid():
        _lower(lib.RLIMIT_NPROC, _THREADS)


def _lower(which: int, most: int) -> None:
    if result := lib.avmm_lower_limit(which, most):
        raise HostError("lower a limit of this process", -result)
