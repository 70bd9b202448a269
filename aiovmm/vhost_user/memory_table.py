"""Guest memory as a back end is told it."""

from __future__ import annotations

from aiovmm.errors import GuestFault, UsageError
from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.vhost_user.payloads import Region
from aiovmm.vhost_user.protocol import MAX_REGIONS

__all__ = ["ring_address", "shared_regions", "wire_region"]


def shared_regions(memory: GuestMemory) -> tuple[MemoryRegion, ...]:
    """The regions that another process is given: RAM that is shared. Raises UsageError.

    Not the memory of devices: a back end with a writable descriptor of a pmem image could change, or cut off, what is nobody's
    but the guest's. (A driver that had its request read straight into such memory is told of an error by the back end.)
    """
    regions = tuple(r for r in memory.regions if r.ram and r.shared and not r.readonly)
    if not regions:
        raise UsageError("guest memory is private: a vhost-user back end cannot share it")
    if len(regions) > MAX_REGIONS:
        raise UsageError(f"guest memory has {len(regions)} regions, a vhost-user memory table {MAX_REGIONS}")
    return regions


def wire_region(region: MemoryRegion) -> Region:
    """Rings are told by the addresses that the region has in this process."""
    return Region(region.gpa, region.size, region.host, region.offset)


def ring_address(regions: tuple[MemoryRegion, ...], address: int, size: int) -> int:
    """The same for [address, address + size) of a ring. Raises GuestFault if it is not in one region."""
    for region in regions:
        if region.gpa <= address and address + size <= region.end:
            return region.host + address - region.gpa
    raise GuestFault(address, size, "shared guest memory, as a ring has to be")
