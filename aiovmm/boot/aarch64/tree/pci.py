"""A PCI segment in the device tree: its configuration space, windows, interrupts, and the IOMMU before its functions. Pure.

Sources: pci/host-generic-pci.yaml, pci/pci-msi.txt, pci/pci-iommu.txt, virtio/pci-iommu.yaml; IEEE Std 1275, PCI Bus Binding.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiovmm.boot.aarch64.tree.handles import GIC, IOMMU, ITS, spi_cells
from aiovmm.boot.fdt import EMPTY, Node, cells, quads, strings
from aiovmm.boot.pci import IntxWire, PciSegment, VirtioIommu, Window

__all__ = ["host_node", "msi_device_id"]

_MEMORY_32, _MEMORY_64 = 0x02000000, 0x03000000  # phys.hi: the space code, not prefetchable
_DEVICE_SHIFT = 11  # phys.hi: the device number
_INTA = 1
_SLOT_MASK, _PIN_MASK = 0xF800, 7
_REQUESTER_IDS = 0x100  # of one bus


def msi_device_id(segment: int, requester_id: int) -> int:
    """How the ITS knows a function of bus 0 of `segment`: with its messages goes this number."""
    return segment << 8 | requester_id


def host_node(segment: PciSegment, iommu: VirtioIommu | None) -> Node:
    """The host bridge of `segment`."""
    buses = segment.end_bus - segment.start_bus + 1
    properties = {
        "compatible": strings("pci-host-ecam-generic"),
        "device_type": strings("pci"),
        "reg": quads(segment.ecam.base, segment.ecam.size),
        "bus-range": cells(segment.start_bus, segment.end_bus),
        "linux,pci-domain": cells(segment.segment),
        "#address-cells": cells(3),
        "#size-cells": cells(2),
        "ranges": _range(_MEMORY_32, segment.mmio32) + _range(_MEMORY_64, segment.mmio64),
        "dma-coherent": EMPTY,
        "msi-map": cells(0, ITS, msi_device_id(segment.segment, 0), buses * _REQUESTER_IDS),
        "#interrupt-cells": cells(1),
        "interrupt-map-mask": cells(_SLOT_MASK, 0, 0, _PIN_MASK),
        "interrupt-map": b"".join(map(_wire, segment.intx)),
    }
    if entries := b"".join(_iommu_map(segment.segment, iommu)):
        properties["iommu-map"] = entries
    children = (_iommu(iommu.bdf),) if iommu is not None and iommu.segment == segment.segment else ()
    return Node(f"pcie@{segment.ecam.base:x}", properties, children)


def _range(space: int, window: Window | None) -> bytes:
    """Addresses on the bus are those of the processors."""
    return b"" if window is None else cells(space) + quads(window.base, window.base, window.size)


def _wire(wire: IntxWire) -> bytes:
    """A function's address and pin; the controller, its address (of two cells, for its children), and interrupt."""
    return cells(wire.slot << _DEVICE_SHIFT, 0, 0, _INTA, GIC, 0, 0, *spi_cells(wire.gsi))


def _iommu_map(segment: int, iommu: VirtioIommu | None) -> Iterator[bytes]:
    """(first requester ID, IOMMU, first endpoint ID, count) of the functions behind it."""
    for r in iommu.endpoints if iommu is not None else ():
        if r.segment == segment:
            yield cells(r.first_bdf, IOMMU, r.endpoint_id, r.last_bdf - r.first_bdf + 1)


def _iommu(bdf: int) -> Node:
    properties = {
        "compatible": strings("virtio,pci-iommu", "pci1af4,1057"),
        "reg": cells(bdf << 8, 0, 0, 0, 0),
        "#iommu-cells": cells(1),
        "phandle": cells(IOMMU),
    }
    return Node(f"iommu@{bdf >> 3 & 31:x},{bdf & 7:x}", properties)
