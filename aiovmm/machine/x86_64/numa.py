"""The NUMA nodes of a guest, for its firmware tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiovmm.boot.x86_64.acpi import NumaNode
from aiovmm.config import VMConfig
from aiovmm.errors import ConfigError
from aiovmm.machine.zones import places_of_zones
from aiovmm.pci.root import PciAddress

__all__ = ["numa_nodes"]


def numa_nodes(
    config: VMConfig, ram: Sequence[tuple[int, int]], functions: Mapping[str, PciAddress]
) -> tuple[NumaNode, ...]:
    """All of them, by their numbers. A kernel that finds memory in no node uses none of this, so what is in none is in the first,
    and so are processors. `functions`: devices by their ids. Raises ConfigError for a node of one that is not there."""
    places = places_of_zones(config, ram) if config.memory_zones else {"": list(ram)}
    nodes = sorted(config.numa, key=lambda node: node.guest_numa_id)
    lowest = next((node.guest_numa_id for node in nodes if node.device_id is None), 0)
    homes = {cpu: node.guest_numa_id for node in config.numa for cpu in node.cpus}  # of two nodes the last one has it
    cpus: dict[int, list[int]] = {node.guest_numa_id: [] for node in nodes}
    for cpu in range(config.cpus.max or config.cpus.boot):
        cpus[homes.get(cpu, lowest)].append(cpu)
    zones = {zone for node in nodes for zone in node.memory_zones}
    spare_zones = [zone for zone in places if zone not in zones]
    described = []
    for node in nodes:
        first = node.guest_numa_id == lowest
        ids = [*node.memory_zones, *(spare_zones if first else ())]
        described.append(
            NumaNode(
                node.guest_numa_id,
                tuple(cpus[node.guest_numa_id]),
                tuple(sorted(piece for zone in ids for piece in places[zone])),
                node.distances,
                node.pci_segments,
                None if node.device_id is None else _place(functions, node.device_id),
            )
        )
    return tuple(described)


def _place(functions: Mapping[str, PciAddress], id_: str) -> tuple[int, int]:
    if id_ not in functions:
        there = f"there are {', '.join(sorted(functions))}" if functions else "there is none"
        raise ConfigError("numa.device_id", f"there is no device {id_!r}", there)
    return functions[id_].segment, functions[id_].requester_id
