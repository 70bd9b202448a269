"""Whether threads of the host can share a core, and whether the kernel keeps them apart who shall not (prctl(2), PR_SCHED_CORE;
Documentation/admin-guide/hw-vuln/core-scheduling.rst): it lets threads share one only if they have the same cookie.
"""

from __future__ import annotations

import errno
from pathlib import Path

from aiovmm.errors import HostError
from aiovmm.native import lib

__all__ = ["is_needed"]

_SMT_ACTIVE = Path("/sys/devices/system/cpu/smt/active")
_HINT = "switch SMT off (/sys/devices/system/cpu/smt/control), or leave core_scheduling= out"


def is_needed() -> bool:
    """False where cores have one thread each, or SMT is off: nothing shares one. Raises HostError if cores can be shared, and the
    kernel keeps nobody apart."""
    error = lib.avmm_has_core_scheduling()
    if not error:
        return True
    if error == errno.ENODEV or not _smt_is_active():
        return False
    raise HostError("core scheduling", error, f"this kernel has none (CONFIG_SCHED_CORE): {_HINT}")


def _smt_is_active() -> bool:
    """Where nobody says, it may be."""
    try:
        return _SMT_ACTIVE.read_text().strip() != "0"
    except OSError:
        return True
