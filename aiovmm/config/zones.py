"""Memory zones and NUMA nodes: whether they fit the rest of a configuration. For configurations that have some."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from aiovmm.config.machine import HotplugMethod
from aiovmm.errors import ConfigError
from aiovmm.runtime.dataclass import replace

if TYPE_CHECKING:
    from aiovmm.config.machine import MemoryConfig, MemoryZoneConfig, NumaConfig
    from aiovmm.config.vm import VMConfig

__all__ = ["check_zones", "settled"]

_LEAST = 2 << 20


def check_zones(config: VMConfig) -> None:
    """Raises ConfigError."""
    zones = config.memory_zones
    if config.memory.size and zones:
        raise ConfigError("memory.size", "is not 0, and there are zones", "say memory size=0: each zone has its own")
    if config.ram_size < _LEAST:
        hint = "give at least 2M, or zones: memory_zone id=a,size=512M" if not zones else "give at least 2M in all"
        raise ConfigError("memory.size", f"{config.ram_size} bytes are too few", hint)
    if zones and config.memory.hotplug_size:
        raise ConfigError("memory.hotplug_size", "is for memory without zones", "say it of a zone, or leave it out")
    if config.memory.hotplug_method is not HotplugMethod.VIRTIO_MEM and any(zone.hotplug_size for zone in zones):
        raise ConfigError("memory_zone.hotplug_size", "goes by virtio-mem", "say memory hotplug_method=virtio-mem, too")
    for zone in zones:
        settled(zone, config.memory)
    _refuse_twice("memory_zone.id", [zone.id for zone in zones])
    _check_nodes(config)


def settled(zone: MemoryZoneConfig, memory: MemoryConfig) -> MemoryZoneConfig:
    """`zone` with what `memory` says where it says nothing itself. Raises ConfigError where that does not go together."""
    inherits = zone.hugepages is None and zone.file is None and memory.hugepages
    huge = inherits or bool(zone.hugepages)
    return replace(
        zone,
        shared=memory.shared if zone.shared is None else zone.shared,
        hugepages=huge,
        hugepage_size=zone.hugepage_size or (memory.hugepage_size if inherits else None),
        prefault=memory.prefault if zone.prefault is None else zone.prefault,
        reserve=memory.reserve if zone.reserve is None else zone.reserve,
        mergeable=zone.mergeable,
    )


def _check_nodes(config: VMConfig) -> None:
    nodes = config.numa
    ids = [node.guest_numa_id for node in nodes]
    _refuse_twice("numa.guest_numa_id", ids)
    _refuse_twice("numa.memory_zones", [zone for node in nodes for zone in node.memory_zones])
    _refuse_twice("numa.device_id", [node.device_id for node in nodes if node.device_id is not None])
    if nodes and all(node.device_id is not None for node in nodes):
        raise ConfigError("numa.device_id", "is all that nodes have", "processors and memory need one, too")
    _refuse_twice("numa.pci_segments", [segment for node in nodes for segment in node.pci_segments])
    for node in nodes:
        _check_node(config, node, ids)


def _check_node(config: VMConfig, node: NumaConfig, ids: list[int]) -> None:
    zones = {zone.id for zone in config.memory_zones}
    for zone in node.memory_zones:
        if zone not in zones:
            raise ConfigError("numa.memory_zones", f"there is no zone {zone!r}", f"say memory_zone id={zone},size=...")
    if any(cpu < 0 for cpu in node.cpus):
        raise ConfigError("numa.cpus", f"there is no processor {min(node.cpus)}", "the first is 0")
    for segment in node.pci_segments:
        if not 0 <= segment < config.platform.num_pci_segments:
            raise ConfigError("numa.pci_segments", f"there is no segment {segment}")
    for other, _ in node.distances:
        if other not in ids:
            raise ConfigError("numa.distances", f"there is no node {other}")


def _refuse_twice(option: str, names: list[int] | list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(option, f"{name} is given {count} times")
