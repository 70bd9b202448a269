"""Why memory of a guest is not there any more, in words for its owner."""

from __future__ import annotations

import errno
import os

from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory, MemoryRegion

__all__ = ["lost_memory"]


def lost_memory(memory: GuestMemory) -> HostError:
    """The error to end its VM with. Asks the host about the files behind `memory`, so it may block."""
    lost = [region for region in memory.regions if region.mapping.lost is not None]
    broken = [*((region, _reason(region)) for region in lost or memory.regions if region.fd >= 0)]
    for region, reason in broken:
        if reason:
            return _error(region, *reason)
    for region in lost:
        return _error(
            region, "the host could not read or write it", "look for I/O and memory errors in the kernel's log"
        )
    return HostError("accessing guest memory", errno.EFAULT, "the guest touched what the host could not give it")


def _reason(region: MemoryRegion) -> tuple[str, str] | None:
    """What is wrong with the file, and a remedy."""
    try:
        size, fs = os.fstat(region.fd).st_size, os.fstatvfs(region.fd)
    except OSError as exc:
        return f"its file fails: {exc.strerror}", "look into the kernel's log"
    is_file = os.path.isfile(f"/proc/self/fd/{region.fd}")
    if is_file and size < region.offset + region.size:
        return f"its file was cut short to {size} bytes", "nobody may shorten it while a guest has it"
    if is_file and region.shared and fs.f_blocks and not fs.f_bavail:
        return "its file has holes and the file system is full", "make room, or write the whole file first (fallocate)"
    return None


def _error(region: MemoryRegion, reason: str, hint: str) -> HostError:
    try:
        name = os.readlink(f"/proc/self/fd/{region.fd}") if region.fd >= 0 else "anonymous memory"
    except OSError:
        name = "its file"
    what = f"guest memory at {region.gpa:#x} ({region.size} bytes of {name}) is lost: {reason}"
    return HostError(what, errno.EFAULT, hint)
