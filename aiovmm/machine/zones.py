"""RAM in zones: where each lies, what it is made of, and which NUMA node has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from aiovmm.config import MemoryZoneConfig, VMConfig
from aiovmm.config.zones import settled
from aiovmm.errors import ConfigError, HostError
from aiovmm.memory import Backing, GuestMemory
from aiovmm.runtime import ofdlock
from aiovmm.runtime.forks import keep_private

__all__ = ["add_zones", "grow", "places_of_zones"]

Ranges = list[tuple[int, int]]
"""(gpa, size in bytes)"""


def places_of_zones(config: VMConfig, ram: Sequence[tuple[int, int]]) -> dict[str, Ranges]:
    """By the id of each zone, its ranges: they follow each other through `ram`, around the holes that it has."""
    places: dict[str, Ranges] = {}
    pieces = list(reversed(ram))
    for zone in config.memory_zones:
        left, places[zone.id] = zone.size, []
        while left:
            gpa, size = pieces.pop()
            taken = min(size, left)
            places[zone.id].append((gpa, taken))
            left -= taken
            if size > taken:
                pieces.append((gpa + taken, size - taken))
    return places


def add_zones(
    memory: GuestMemory,
    config: VMConfig,
    ram: Sequence[tuple[int, int]],
    *,
    needs_sharing: bool,
    wanted: Callable[[], bool],
) -> None:
    """All of them. `needs_sharing`: a device is another process's. Raises ConfigError, HostError; `memory` is to be closed
    then."""
    places = places_of_zones(config, ram)
    for zone in (settled(zone, config.memory) for zone in config.memory_zones):
        shared = needs_sharing or bool(zone.hugepages) if zone.shared is None else zone.shared
        if needs_sharing and not shared:
            reason = f"is off in zone {zone.id}, and a device needs shared memory"
            raise ConfigError("memory_zone.shared", reason, "leave it out")
        if not zone.size:  # all that it has is still to come
            continue
        _check_pieces(zone, places[zone.id])
        fd = -1 if zone.file is None else _opened(zone, shared)
        backing = _backing(config, zone, shared, fd=fd, prefault=bool(zone.prefault))
        memory.add_ram(places[zone.id], backing, name=f"aiovmm-{zone.id}", wanted=wanted)


def grow(
    memory: GuestMemory, config: VMConfig, zones: Sequence[MemoryZoneConfig], places: Sequence[tuple[int, int]]
) -> None:
    """What may come to each of `zones`, at its place: made of what the zone is, but for its file, and nothing of it touched.
    Raises HostError."""
    for zone, place in zip((settled(zone, config.memory) for zone in zones), places, strict=True):
        alike = bool(zone.hugepages) or all(region.shared for region in memory.regions if region.ram)
        shared = alike if zone.shared is None else zone.shared
        memory.add_ram([], _backing(config, zone, shared), later=[place], name=f"aiovmm-{zone.id}-hotplug")


def _backing(
    config: VMConfig, zone: MemoryZoneConfig, shared: bool, *, fd: int = -1, prefault: bool = False
) -> Backing:
    mergeable = config.memory.mergeable if zone.mergeable is None else zone.mergeable
    return Backing(
        shared=shared,
        hugepages=bool(zone.hugepages),
        hugepage_size=zone.hugepage_size,
        prefault=prefault,
        reserve=bool(zone.reserve),
        thp=config.memory.thp is not False,
        mergeable=mergeable and not shared and zone.file is None,
        fd=fd,
        host_node=zone.host_numa_node,
    )


def _check_pieces(zone: MemoryZoneConfig, ranges: Ranges) -> None:
    """A hole in the address space may cut a zone where no page of its ends."""
    page = zone.hugepage_size or 2 << 20
    if zone.hugepages and any(gpa % page or size % page for gpa, size in ranges):
        reason = f"of zone {zone.id} does not fit where it lies: its pages would begin at no multiple of {page >> 20}M"
        raise ConfigError("memory_zone.hugepage_size", reason, "put zones of large pages first")


def _opened(zone: MemoryZoneConfig, shared: bool) -> int:
    """Its file, locked, or one without a name in its directory; the caller's."""
    assert zone.file is not None
    unnamed = os.path.isdir(zone.file)
    try:
        fd = os.open(zone.file, os.O_RDWR | os.O_CLOEXEC | (os.O_TMPFILE | os.O_EXCL if unnamed else 0), 0o600)
    except OSError as exc:
        raise HostError("opening the file of a memory zone", exc.errno or 0, path=str(zone.file)) from exc
    try:
        if unnamed:
            os.ftruncate(fd, zone.size)
        elif (there := os.fstat(fd).st_size) < zone.size:
            hint = f"truncate -s {zone.size} {zone.file} makes it larger"
            raise ConfigError("memory_zone.file", f"{zone.file} has {there} bytes, and the zone {zone.size}", hint)
        else:
            _lock(fd, zone, shared)
    except BaseException:
        os.close(fd)
        raise
    return keep_private(fd)


def _lock(fd: int, zone: MemoryZoneConfig, shared: bool) -> None:
    try:
        ofdlock.lock(fd, shared=not shared)
    except OSError as exc:
        raise ConfigError("memory_zone.file", f"{zone.file} is in use", "give each guest a file of its own") from exc
