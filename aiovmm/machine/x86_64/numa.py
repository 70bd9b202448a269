"""The NUMA nodes of a guest, for its firmware tables."""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.x86_64.acpi import NumaNode
from aiovmm.config import VMConfig
from aiovmm.machine.zones import places_of_zones

__all__ = ["numa_nodes"]


def numa_nodes(config: VMConfig, ram: Sequence[tuple[int, int]]) -> tuple[NumaNode, ...]:
    """All of them, by their numbers. A kernel that finds memory in no node uses none of this, so what is in none is in the first,
    and so are processors."""
    places = places_of_zones(config, ram) if config.memory_zones else {"": list(ram)}
    nodes = sorted(config.numa, key=lambda node: node.guest_numa_id)
    lowest = nodes[0].guest_numa_id if nodes else 0
    cpus = {cpu for node in nodes for cpu in node.cpus}
    zones = {zone for node in nodes for zone in node.memory_zones}
    spare_cpus = [cpu for cpu in range(config.cpus.max or config.cpus.boot) if cpu not in cpus]
    spare_zones = [zone for zone in places if zone not in zones]
    described = []
    for node in nodes:
        first = node.guest_numa_id == lowest
        ids = [*node.memory_zones, *(spare_zones if first else ())]
        described.append(
            NumaNode(
                node.guest_numa_id,
                (*node.cpus, *(spare_cpus if first else ())),
                tuple(sorted(piece for zone in ids for piece in places[zone])),
                node.distances,
                node.pci_segments,
            )
        )
    return tuple(described)
