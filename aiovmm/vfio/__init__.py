"""VFIO: PCI devices of the host handed to a guest (Linux, drivers/vfio; docs: driver-api/vfio).

sysfs says whether a device can be handed over; container and device acquire it, and outlive the guest's reboots; function is
the device on one machine's PCI bus. virtual_config, host_config, msi, layout and abi are pure.
"""

from __future__ import annotations

from aiovmm.vfio.container import Container
from aiovmm.vfio.device import HostDevice
from aiovmm.vfio.follow import Follower
from aiovmm.vfio.function import VfioFunction
from aiovmm.vfio.services import MemorySlot, VfioServices
from aiovmm.vfio.system import HostSystem, System

__all__ = ["Container", "Follower", "HostDevice", "HostSystem", "MemorySlot", "System", "VfioFunction", "VfioServices"]
