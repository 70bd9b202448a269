"""The device tree of a machine: what firmware would tell a guest, and all that it knows of where things are. Pure.

Sources: Documentation/devicetree/bindings of Linux, named where a node is made; Devicetree Specification 0.4, chapter 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiovmm.boot.aarch64.hardware import Hardware, Seeds
from aiovmm.boot.aarch64.tree.cpus import cpus_node, pmu_node, psci_node, timer_node
from aiovmm.boot.aarch64.tree.devices import device_nodes, uart_path
from aiovmm.boot.aarch64.tree.gic import gic_node
from aiovmm.boot.aarch64.tree.handles import GIC
from aiovmm.boot.aarch64.tree.pci import host_node
from aiovmm.boot.fdt import Node, cells, quads, raw_string, strings

__all__ = ["device_tree"]


def device_tree(
    hardware: Hardware,
    ram: Sequence[tuple[int, int]],
    *,
    cmdline: bytes = b"",
    initrd: tuple[int, int] | None = None,
    seeds: Seeds | None = None,
) -> Node:
    """The root of the tree. `ram` are (gpa, size), `initrd` likewise."""
    nodes = [
        _chosen(hardware, cmdline, initrd, seeds),
        *(_memory(gpa, size) for gpa, size in ram),
        cpus_node(hardware),
        psci_node(),
        timer_node(),
        gic_node(hardware.gic),
        *device_nodes(hardware),
        *(host_node(segment, hardware.iommu) for segment in hardware.pci_segments),
    ]
    if hardware.pmu:
        nodes.append(pmu_node())
    if hardware.uart is not None:
        nodes.insert(0, Node("aliases", {"serial0": strings(uart_path(hardware.uart))}))
    properties = {
        "compatible": strings("linux,dummy-virt"),
        "model": strings("aiovmm"),
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "interrupt-parent": cells(GIC),
    }
    return Node("", properties, tuple(nodes))


def _chosen(hardware: Hardware, cmdline: bytes, initrd: tuple[int, int] | None, seeds: Seeds | None) -> Node:
    """Linux wipes the seeds from its copy once it has used them."""
    properties = {"bootargs": raw_string(cmdline)}
    if hardware.uart is not None:
        properties["stdout-path"] = strings(uart_path(hardware.uart))
    if initrd is not None:
        properties["linux,initrd-start"] = quads(initrd[0])
        properties["linux,initrd-end"] = quads(initrd[0] + initrd[1])
    if seeds is not None:
        properties["rng-seed"] = seeds.rng
        if seeds.kaslr:
            properties["kaslr-seed"] = quads(seeds.kaslr)
    return Node("chosen", properties)


def _memory(gpa: int, size: int) -> Node:
    return Node(f"memory@{gpa:x}", {"device_type": strings("memory"), "reg": quads(gpa, size)})
