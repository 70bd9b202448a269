"""The memory that a machine is made with: RAM, in one piece or in zones, and room for what may come to be RAM. What devices bring
is `device_memory`'s, and what comes while a guest runs `hotplug`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiovmm.config import HotplugMethod
from aiovmm.errors import ConfigError
from aiovmm.machine.parts import MachineParts
from aiovmm.memory import GuestMemory
from aiovmm.runtime.undoing import Undoing

if TYPE_CHECKING:
    from aiovmm.machine.board import Board
    from aiovmm.machine.restored import Restored

__all__ = ["make_memory"]

Wanted = Callable[[], bool]
"""Whether somebody still waits for it."""


def make_memory(
    parts: MachineParts, board: Board, restored: Restored | None, undoing: Undoing, wanted: Wanted
) -> tuple[GuestMemory, int]:
    """The memory, which `undoing` closes, and the end of RAM with all that may come to be some. In a thread. Raises ConfigError,
    SnapshotError, HostError."""
    config, end = parts.config, board.device_memory_start
    later: list[tuple[int, int]] = []
    if config.memory.hotplug_size:
        from aiovmm.machine.hotplug.places import at_start, place_of

        later = at_start(config.memory, end)
        end = sum(place_of(config.memory, end))
    zones = [zone for zone in config.memory_zones if zone.hotplug_size]
    if zones:
        from aiovmm.machine.hotplug.places import places_in_zones

        later = places_in_zones(zones, end)
        end = sum(later[-1])
    if restored is None:
        memory = _new_memory(parts, board.ram, wanted)
    else:
        memory = restored.map_memory([*board.ram, *later])
    undoing.push(memory.close)
    if zones and restored is None:
        from aiovmm.machine.zones import grow

        grow(memory, config, zones, later)
    elif later and restored is None:
        from aiovmm.machine.hotplug.places import add_memory

        add_memory(memory, config.memory, later)
    if later and config.memory.hotplug_method is HotplugMethod.VIRTIO_MEM:
        from aiovmm.machine.hotplug.memory import power_on

        power_on(parts.plugged, memory, [start for start, _ in later])
    return memory, end


def _new_memory(parts: MachineParts, ram: list[tuple[int, int]], wanted: Wanted) -> GuestMemory:
    m = parts.config.memory
    needed = any(p.device.shares_memory for p in parts.plugged)
    if parts.config.memory_zones:
        return _in_zones(parts, ram, needed, wanted)
    shared = needed or m.hugepages if m.shared is None else m.shared
    if m.mergeable and shared:
        raise ConfigError("memory.mergeable", "does not go with devices that share memory with another process")
    return GuestMemory.create(
        ram,
        shared=shared,
        hugepages=m.hugepages,
        prefault=m.prefault,
        thp=m.wants_huge_pages,
        mergeable=m.mergeable,
        hugepage_size=m.hugepage_size,
        reserve=m.reserve,
        wanted=wanted,
    )


def _in_zones(parts: MachineParts, ram: list[tuple[int, int]], needs_sharing: bool, wanted: Wanted) -> GuestMemory:
    from aiovmm.machine.zones import add_zones

    memory = GuestMemory()
    try:
        add_zones(memory, parts.config, ram, needs_sharing=needs_sharing, wanted=wanted)
    except BaseException:
        memory.close()
        raise
    return memory
