"""What a VM keeps across the guest's reboots: its configuration, kernel image, consoles and virtio devices.

A machine (machine.assembly) is built around these parts for each power-on and taken apart again; the parts hold whatever must
survive that: open disks and TAPs, listening sockets, consoles with their history, and /dev/kvm itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiovmm.boot import KernelImage, load_kernel
from aiovmm.config import PlacedConfig, VMConfig
from aiovmm.config.ids import device_ids, single_id
from aiovmm.console import Console
from aiovmm.errors import ConfigError
from aiovmm.kvm import Kvm
from aiovmm.machine.owner import MachineOwner
from aiovmm.runtime.dataclass import dataclass, field
from aiovmm.runtime.fair import Account
from aiovmm.runtime.tasks import in_thread, side_by_side
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.devices.limits import Limiter
    from aiovmm.devices.port import PortDevice
    from aiovmm.devices.virtio.blk.image import DiskImage
    from aiovmm.machine.passthrough import HostPlace, Passthrough

__all__ = ["MachineParts", "PluggedDevice", "open_parts"]


_ANYWHERE = PlacedConfig()


@dataclass(frozen=True)
class PluggedDevice:
    """A virtio device, the id it is known by, and its place on PCI."""

    id: str
    device: VirtioDevice
    segment: int = 0
    iommu: bool = False
    slot: int | None = None


@dataclass()
class MachineParts:
    """See the module. `serial_output` gets what the guest prints on its serial port, `console_output` what it prints on hvc0."""

    config: VMConfig
    kernel: KernelImage | None  # see `load_kernel`
    serial: Console
    console: Console
    serial_output: Callable[[bytes], None]
    console_output: Callable[[bytes], None]
    plugged: list[PluggedDevice] = field(default_factory=list)
    ports: tuple[PortDevice, ...] = ()  # the embedder's, that are not virtio
    passthrough: Passthrough | None = None  # devices of the host, once there are any
    rate_limits: dict[str, Limiter] = field(default_factory=dict)  # by group
    owner: MachineOwner | None = None  # whom devices tell of the guest
    debug_output: Callable[[bytes], None] | None = None  # of the debug console, if there is one
    images: Mapping[str, Callable[[], DiskImage]] = field(
        default_factory=dict
    )  # of disks whose image is not the configured
    exits_limit: int | None = None  # a second
    account: Account = field(default_factory=Account)  # of the turns it has of the event loop
    _kvm: Kvm | None = None

    def __post_init__(self) -> None:
        self.ids = device_ids(self.config)

    def plug(self, device: VirtioDevice, id_: str, place: PlacedConfig = _ANYWHERE) -> None:
        """Add a device. Raises ConfigError if its id is taken."""
        if any(p.id == id_ for p in self.plugged):
            raise ConfigError("device.id", f"{id_!r} names two devices")
        self.plugged.append(PluggedDevice(id_, device, place.pci_segment, place.iommu, place.pci_device_id))

    def free_id(self, name: str) -> str:
        """For a device that is in no configuration: `name`, or with a number where that is taken."""
        return single_id(name, {id_ for ids in self.ids.values() for id_ in ids} | {p.id for p in self.plugged})

    def load_kernel(self) -> None:
        """Examine the kernel, and unpack it, if that has not been done; a restored machine has no need of it before its guest
        resets itself. In a thread: it takes its time. Raises ImageError, HostError."""
        if self.kernel is None:
            self.kernel = load_kernel(self.config.payload.kernel)

    def open_kvm(self) -> Kvm:
        """/dev/kvm, open once in the process, from the first power-on to the last: no reset may fail for want of it. Raises
        KvmError."""
        if self._kvm is None:
            self._kvm = Kvm.hold()
        return self._kvm

    def chosen_slots(self) -> list[tuple[int, int]]:
        """(segment, slot) of the devices whose slots were chosen."""
        slots = [(p.segment, p.slot) for p in self.plugged if p.slot is not None]
        if (pvpanic := self.config.pvpanic) is not None and pvpanic.pci_device_id is not None:
            slots.append((pvpanic.pci_segment, pvpanic.pci_device_id))
        return slots + [(p.segment, p.slot) for p in self.hosts if p.slot is not None]

    @property
    def bare_segments(self) -> set[int]:
        """PCI segments whose slot 0 a device has that has chosen it."""
        return {segment for segment, slot in self.chosen_slots() if slot == 0}

    @property
    def hosts(self) -> Sequence[HostPlace]:
        """Devices of the host."""
        return self.passthrough.places if self.passthrough is not None else ()

    async def aclose(self) -> None:
        """Close every device, the last first, and /dev/kvm. Idempotent. What one raises does not keep the others open."""
        errors: list[Exception] = []
        while self.plugged:
            try:
                await self.plugged.pop().device.close()
            except Exception as exc:
                errors.append(exc)
        if self.passthrough is not None:
            try:
                await in_thread(f"{self.config.name}: vfio close", self.passthrough.close)
            except Exception as exc:
                errors.append(exc)
        kvm, self._kvm = self._kvm, None
        if kvm is not None:
            kvm.close()
        if errors:
            raise errors[0]


async def open_parts(parts: MachineParts) -> None:
    """Have every device acquire its host resources; those last that may wait for another program, each beside the others. Raises
    HostError, ConfigError; `aclose` then releases what was acquired."""
    everybody = [plugged.device for plugged in parts.plugged]
    devices = [device for device in everybody if not device._awaits_peer]
    slow = [device for device in devices if device._opens_slowly]
    if len(slow) > 1:
        await side_by_side(*(device.open() for device in slow))
        devices = [device for device in devices if device not in slow]
    for device in devices:
        await device.open()
    if parts.passthrough is not None:
        await in_thread(f"{parts.config.name}: vfio open", parts.passthrough.open)
    if others := [device for device in everybody if device._awaits_peer]:
        await side_by_side(*(device.open() for device in others))
