"""The device tree of a machine, made of what `hardware` says: what firmware would tell a guest.

root     the tree and what every one of them has; chosen, memory
cpus     processors and what each has of its own: PSCI, timers, PMU
gic      the interrupt controller
devices  what is not on PCI
pci      segments, and the IOMMU before their functions
handles  how nodes name each other
"""

from __future__ import annotations

from aiovmm.boot.aarch64.tree.pci import msi_device_id
from aiovmm.boot.aarch64.tree.root import device_tree

__all__ = ["device_tree", "msi_device_id"]
