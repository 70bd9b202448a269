"""The Virtual I/O Translation table: which PCI functions are behind a virtio-iommu.

VIOT revision 0, a table whose signature ACPI 6.4, 5.2.6 reserves. Linux reads it in drivers/acpi/viot.c: the endpoint ID of a
function is `endpoint start + (segment - first segment) << 16 + (BDF - first BDF)`.
"""

from __future__ import annotations

import struct

from aiovmm.boot.acpi.sdt import HEADER, sdt
from aiovmm.boot.pci import EndpointRange, VirtioIommu

__all__ = ["viot"]

REVISION = 0
_NODES_OFFSET = HEADER.size + 12
_PCI_RANGE, _VIRTIO_IOMMU_PCI = 1, 3
_PCI_RANGE_SIZE, _VIRTIO_IOMMU_PCI_SIZE = 24, 16


def viot(iommu: VirtioIommu) -> bytes:
    """The table: the IOMMU's node first, then one node a range of functions, each leading to it."""
    nodes = [struct.pack("<BBHHH8x", _VIRTIO_IOMMU_PCI, 0, _VIRTIO_IOMMU_PCI_SIZE, iommu.segment, iommu.bdf)]
    nodes += [_pci_range(r) for r in iommu.endpoints]
    return sdt("VIOT", REVISION, struct.pack("<HH8x", len(nodes), _NODES_OFFSET) + b"".join(nodes))


def _pci_range(r: EndpointRange) -> bytes:
    return struct.pack(
        "<BBHIHHHHH6x",
        _PCI_RANGE,
        0,
        _PCI_RANGE_SIZE,
        r.endpoint_id,
        r.segment,
        r.segment,
        r.first_bdf,
        r.last_bdf,
        _NODES_OFFSET,
    )
