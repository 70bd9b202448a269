"""What a configuration may say that has less of an effect than it seems to have: taken, as the reference monitor takes it, and
remarked on in the log. For configurations that have such keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from aiovmm.config.ids import device_ids
from aiovmm.config.machine import HotplugMethod, MemoryConfig, MemoryZoneConfig
from aiovmm.config.net import is_no_station
from aiovmm.config.rates import REFILL_TIME
from aiovmm.config.vm import VMConfig

__all__ = ["remarks"]


def remarks(config: VMConfig) -> Iterator[str]:
    """One sentence for each."""
    there = config.cpus.max or config.cpus.boot
    for vcpu, _ in config.cpus.affinity:
        if vcpu >= there:
            yield f"cpus.affinity: there is no vCPU {vcpu}, the last of {there} is {there - 1}: it is passed over"
    if config.numa:
        yield from _of_nodes(config, there)
    memory = config.memory
    if memory.hotplug_method is HotplugMethod.ACPI and memory.hotplug_size != memory.modules_size:
        reason = f"comes in modules of 128M, of {memory.hotplug_size} bytes {memory.modules_size}"
        yield f"memory.hotplug_size: {reason}; hotplug_method=virtio-mem has smaller steps"
    if memory.thp or memory.mergeable:
        yield from _of_pages(config)
    ids = device_ids(config)
    yield from _of_rates(config, ids)
    for name, net in zip(ids.get("nets", ()), config.nets, strict=True):
        if net.mac is not None and is_no_station(net.mac):
            kind = "a multicast address" if net.mac.strip("0:") else "nobody's address"
            yield (
                f"net.mac: {name} has {net.mac}, {kind}: Linux does not bring such an interface up "
                "before it was given another (the second digit of a card's own address is even)"
            )
        if net.num_queues % 2:
            pairs = f"{net.num_queues // 2} queue pair{'s' * (net.num_queues > 3)}"
            yield f"net.num_queues: {net.num_queues} counts both directions: {name} has {pairs}"
    for name, disk in zip(ids.get("disks", ()), config.disks, strict=True):
        for queue, _ in disk.queue_affinity:
            if queue >= disk.num_queues:
                yield f"disk.queue_affinity: {name} has no queue {queue}, it has {disk.num_queues}: it is passed over"


def _of_pages(config: VMConfig) -> Iterator[str]:
    """Of what is said of all memory, and holds for private memory of small pages alone."""
    from aiovmm.config.zones import settled

    memory = config.memory
    others = {zone.id: _not_small(settled(zone, memory)) for zone in config.memory_zones}
    if memory.thp:
        whole = "" if config.memory_zones else _not_small(memory)
        for of, kind in (("it", whole), *others.items()):
            if kind:
                yield f"memory.thp: {of} {kind}: transparent huge pages are for other memory"
    if memory.mergeable:
        for zone in config.memory_zones:
            if zone.mergeable is None and (kind := others[zone.id]):
                yield f"memory.mergeable: {zone.id} {kind}: the kernel merges none of its pages"


def _not_small(memory: MemoryConfig | MemoryZoneConfig) -> str:
    """What keeps it from being private memory of small pages, or nothing."""
    if isinstance(memory, MemoryZoneConfig) and memory.file is not None:
        return "has a file"
    return "has hugepages=on" if memory.hugepages else "has shared=on" if memory.shared else ""


def _of_rates(config: VMConfig, ids: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for option, group, devices in (("net", "nets", config.nets), ("disk", "disks", config.disks)):
        for name, device in zip(ids.get(group, ()), devices, strict=True):
            for kind in ("bw", "ops"):
                if not getattr(device, f"{kind}_size") and getattr(device, f"{kind}_refill_time") != REFILL_TIME:
                    yield f"{option}.{kind}_refill_time: {name} has no {kind}_size: it limits nothing"


def _of_nodes(config: VMConfig, there: int) -> Iterator[str]:
    seen: dict[int, int] = {}
    for node in config.numa:
        for cpu in node.cpus:
            if cpu >= there:
                yield f"numa.cpus: there is no processor {cpu}, the last of {there} is {there - 1}: it is passed over"
            elif seen.get(cpu, node.guest_numa_id) != node.guest_numa_id:
                yield f"numa.cpus: {cpu} is in node {seen[cpu]} and in {node.guest_numa_id}: it is in the latter"
            seen[cpu] = node.guest_numa_id
        for other, distance in node.distances:
            if other == node.guest_numa_id and distance != 10:
                yield f"numa.distances: {distance} is said from node {other} to itself: it is 10"
