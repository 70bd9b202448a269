"""VFIO: PCI devices of the host handed to a guest (Linux, drivers/vfio; docs: driver-api/vfio).

sysfs says whether a device can be handed over; container or iommufd, each a space, and device acquire it, and outlive the guest's
reboots; function is the device on one machine's PCI bus. virtual_config, host_config, msi, layout, abi and iommufd_abi are pure.
"""

from __future__ import annotations

from aiovmm.vfio.container import Container
from aiovmm.vfio.device import HostDevice
from aiovmm.vfio.follow import Follower
from aiovmm.vfio.function import VfioFunction
from aiovmm.vfio.iommufd import Ioas, Iommufd
from aiovmm.vfio.services import MemorySlot, VfioServices
from aiovmm.vfio.space import AddressSpace
from aiovmm.vfio.system import HostSystem, System

__all__ = [
    "AddressSpace",
    "Container",
    "Follower",
    "HostDevice",
    "HostSystem",
    "Ioas",
    "Iommufd",
    "MemorySlot",
    "System",
    "VfioFunction",
    "VfioServices",
]
