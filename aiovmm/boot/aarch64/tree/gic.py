"""The interrupt controller's node, GICv3 with one ITS (interrupt-controller/arm,gic-v3.yaml). Pure."""

from __future__ import annotations

from aiovmm.boot.aarch64 import layout
from aiovmm.boot.aarch64.tree.handles import GIC, ITS, ppis
from aiovmm.boot.fdt import EMPTY, Node, cells, quads, strings

__all__ = ["gic_node"]


def gic_node(gic: layout.Gic) -> Node:
    """With the ITS below, which is where the messages of PCI functions go."""
    properties = {
        "compatible": strings("arm,gic-v3"),
        "interrupt-controller": EMPTY,
        "#interrupt-cells": cells(3),
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "ranges": EMPTY,
        "reg": quads(
            gic.distributor, layout.GIC_DISTRIBUTOR_SIZE, gic.redistributors, gic.vcpus * layout.GIC_REDISTRIBUTOR_SIZE
        ),
        "interrupts": ppis(layout.MAINTENANCE_PPI),
        "phandle": cells(GIC),
    }
    return Node(f"interrupt-controller@{gic.distributor:x}", properties, (_its(gic.its),))


def _its(base: int) -> Node:
    properties = {
        "compatible": strings("arm,gic-v3-its"),
        "msi-controller": EMPTY,
        "#msi-cells": cells(1),
        "reg": quads(base, layout.GIC_ITS_SIZE),
        "phandle": cells(ITS),
    }
    return Node(f"msi-controller@{base:x}", properties)
