"""Where memory lies that comes and goes, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiovmm.config import HotplugMethod, MemoryConfig, MemoryZoneConfig
from aiovmm.memory import Backing, GuestMemory

__all__ = ["add_memory", "at_start", "modules", "place_of", "places_in_zones"]

Range = tuple[int, int]
"""(gpa, size in bytes)"""

_ALIGNMENT = 1 << 30  # memory blocks of Linux begin at multiples of 128 MiB, in large guests of up to 2 GiB


def place_of(memory: MemoryConfig, end_of_ram: int) -> Range:
    """All of it."""
    whole = memory.hotplug_method is HotplugMethod.VIRTIO_MEM
    return -(-end_of_ram // _ALIGNMENT) * _ALIGNMENT, memory.hotplug_size if whole else memory.modules_size


def places_in_zones(zones: Iterable[MemoryZoneConfig], end_of_ram: int) -> list[Range]:
    """That of zones which grow, one after the other."""
    places: list[Range] = []
    for zone in zones:
        if zone.hotplug_size:
            start = -(-end_of_ram // _ALIGNMENT) * _ALIGNMENT
            places.append((start, zone.hotplug_size))
            end_of_ram = start + zone.hotplug_size
    return places


def modules(memory: MemoryConfig, end_of_ram: int) -> list[Range]:
    """That of ACPI, a module each; the last may be smaller."""
    start, size = place_of(memory, end_of_ram)
    step = memory.module_size
    return [(start + at, min(step, size - at)) for at in range(0, size, step)] if size else []


def at_start(memory: MemoryConfig, end_of_ram: int) -> list[Range]:
    """What a machine is made with: the whole of virtio-mem's, or the modules that are there."""
    if memory.hotplug_method is HotplugMethod.VIRTIO_MEM:
        return [place_of(memory, end_of_ram)]
    start, _ = place_of(memory, end_of_ram)
    return [(gpa, size) for gpa, size in modules(memory, end_of_ram) if gpa + size <= start + memory.hotplugged_size]


def add_memory(guest: GuestMemory, memory: MemoryConfig, ranges: Sequence[Range]) -> None:
    """Like the RAM that there is: shared if that is. Nothing of it is touched. Raises HostError."""
    shared = all(region.shared for region in guest.regions if region.ram)
    backing = Backing(
        shared=shared,
        hugepages=memory.hugepages,
        hugepage_size=memory.hugepage_size,
        reserve=memory.reserve,
        thp=memory.wants_huge_pages,
        mergeable=memory.mergeable and not shared,
    )
    for place in ranges:
        guest.add_ram([], backing, later=[place], name="aiovmm-hotplug")
