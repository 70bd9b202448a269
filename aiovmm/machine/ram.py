"""What a guest's RAM costs the host now, and having the host take back what is not in use."""

from __future__ import annotations

from collections.abc import Callable

from aiovmm.memory import GuestMemory, MemoryRegion
from aiovmm.native import lib
from aiovmm.runtime.tasks import in_thread

__all__ = ["Ram"]


class Ram:
    """Of one VM. Each call looks at the machine of now, in a thread: for many gigabytes it takes milliseconds."""

    def __init__(self, name: str, memory: Callable[[], GuestMemory]) -> None:
        self._name = name
        self._memory = memory

    async def resident(self) -> int:
        """Bytes of the guest's RAM that take up memory of the host. What several guests share counts in each. Raises StateError
        where there is no machine."""
        return await in_thread(f"{self._name}: count pages", _resident, _regions(self._memory()))

    async def own(self) -> int:
        """Of the resident bytes those that no other guest has: of a fork, or a guest that was restored, what has been written to
        since; the rest it has with its template, or with the snapshot's file. Raises StateError."""
        return await in_thread(f"{self._name}: count pages", _own, _regions(self._memory()))

    async def both(self) -> tuple[int, int]:
        """`resident` and `own`, looked at together. Raises StateError."""
        return await in_thread(f"{self._name}: count pages", _both, _regions(self._memory()))

    async def reclaim(self) -> int:
        """Have the kernel move to swap what the guest has not used lately; how many bytes less are resident then. The guest goes
        on, and has its pages again as it touches them. Without swap nothing moves: see the balloon. Raises StateError."""
        regions = _regions(self._memory())
        return await in_thread(f"{self._name}: reclaim", _reclaim, regions)


def _regions(memory: GuestMemory) -> list[MemoryRegion]:
    return [region for region in memory.regions if region.ram]


def _resident(regions: list[MemoryRegion]) -> int:
    return sum(lib.avmm_mem_resident(region.host, region.size) for region in regions)


def _own(regions: list[MemoryRegion]) -> int:
    return sum(lib.avmm_mem_own(region.host, region.size) for region in regions)


def _both(regions: list[MemoryRegion]) -> tuple[int, int]:
    own = _own(regions)  # first: what the guest touches meanwhile makes it no more than what is resident
    return _resident(regions), own


def _reclaim(regions: list[MemoryRegion]) -> int:
    before = _resident(regions)
    for region in regions:
        lib.avmm_mem_page_out(region.host, region.size)
    return max(0, before - _resident(regions))
