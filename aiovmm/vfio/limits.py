"""Locked memory: all guest memory that a device reaches is, and the host limits it."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

from aiovmm.errors import HostError

__all__ = ["check_lockable", "memlock_hint"]

_CAP_IPC_LOCK = 14


def check_lockable(size: int, status: Path = Path("/proc/self/status")) -> None:
    """Raise HostError if this process may not lock `size` bytes: neither by its limit nor by CAP_IPC_LOCK."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < size and not _may_lock_all(status):
        raise HostError("handing devices of the host to a guest", errno.ENOMEM, memlock_hint(size))


def memlock_hint(size: int) -> str:
    """What to do when `size` bytes cannot be locked."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    return (
        f"guest memory must be locked for it; the limit of locked memory is {limit}: raise it by `ulimit -l` (LimitMEMLOCK= "
        f"of systemd) to more than {size >> 10} KiB, or give the guest less memory"
    )


def _may_lock_all(status: Path) -> bool:
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False
