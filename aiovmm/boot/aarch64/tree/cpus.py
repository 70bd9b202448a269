"""Processors in the device tree, and what KVM gives each of them: PSCI, timers, PMU. Pure.

Sources: arm/cpus.yaml, cpu/cpu-topology.txt, arm/psci.yaml, timer/arm,arch_timer.yaml, arm/pmu.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.hardware import CpuTopology, Hardware
from aiovmm.boot.aarch64.tree.handles import FIRST_CPU, ppis
from aiovmm.boot.fdt import EMPTY, Node, cells, strings

__all__ = ["cpus_node", "pmu_node", "psci_node", "timer_node"]


def cpus_node(hardware: Hardware) -> Node:
    """All processors, and how they are laid out."""
    wide = 2 if any(affinity >> 32 for affinity in hardware.affinities) else 1
    topology = hardware.topology or CpuTopology(cores=len(hardware.mpidrs))
    properties = {"#address-cells": cells(wide), "#size-cells": cells(0)}
    nodes = [_cpu(index, affinity, wide) for index, affinity in enumerate(hardware.affinities)]
    return Node("cpus", properties, (*nodes, _cpu_map(len(nodes), topology)))


def _cpu(index: int, affinity: int, wide: int) -> Node:
    properties = {
        "device_type": strings("cpu"),
        "compatible": strings("arm,armv8"),
        "enable-method": strings("psci"),
        "reg": affinity.to_bytes(4 * wide, "big"),
        "phandle": cells(FIRST_CPU + index),
    }
    return Node(f"cpu@{affinity:x}", properties)


def _cpu_map(count: int, topology: CpuTopology) -> Node:
    """Sockets of clusters of cores of threads; a core of one thread has no level for it."""
    names = ("socket", "cluster", "core") + (("thread",) if topology.threads > 1 else ())
    places = [(topology.place(index)[: len(names)], FIRST_CPU + index) for index in range(count)]
    return Node("cpu-map", {}, _level(names, places))


def _level(names: Sequence[str], places: Sequence[tuple[tuple[int, ...], int]]) -> tuple[Node, ...]:
    """Nodes for the first part of each place, and below them what the rest says."""
    groups: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for (first, *rest), phandle in places:
        groups.setdefault(first, []).append((tuple(rest), phandle))
    if len(names) > 1:
        return tuple(Node(f"{names[0]}{n}", {}, _level(names[1:], group)) for n, group in groups.items())
    return tuple(Node(f"{names[0]}{n}", {"cpu": cells(phandle)}) for n, [(_, phandle)] in groups.items())


def psci_node() -> Node:
    """Processors are started, and the machine is ended, by calls that KVM itself answers."""
    return Node("psci", {"compatible": strings("arm,psci-1.0", "arm,psci-0.2"), "method": strings("hvc")})


def timer_node() -> Node:
    """They count on while a processor sleeps."""
    properties = {
        "compatible": strings("arm,armv8-timer"),
        "always-on": EMPTY,
        "interrupts": ppis(*layout.TIMER_PPIS),
    }
    return Node("timer", properties)


def pmu_node() -> Node:
    """Performance counters."""
    return Node("pmu", {"compatible": strings("arm,armv8-pmuv3"), "interrupts": ppis(layout.PMU_PPI)})
