"""What a VM has plugged in, by id and by kind, with types that a checker knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, overload

from aiovmm.errors import StateError, UsageError
from aiovmm.virtqueue.device import VirtioDevice

if TYPE_CHECKING:
    from aiovmm.devices.virtio.balloon import BalloonDevice
    from aiovmm.devices.virtio.blk import BlkDevice
    from aiovmm.devices.virtio.net import NetDevice
    from aiovmm.devices.virtio.vsock import Vsock
    from aiovmm.machine.parts import PluggedDevice

__all__ = ["Inventory"]

D = TypeVar("D", bound=VirtioDevice)


class Inventory:
    """The devices of a VM; there are some only inside `async with`."""

    @property
    def name(self) -> str:
        """The VM's."""
        raise NotImplementedError

    def _plugged(self) -> Sequence[PluggedDevice]:
        """Raises StateError outside `async with`."""
        raise NotImplementedError

    @overload
    def device(self, id_: str) -> VirtioDevice: ...
    @overload
    def device(self, id_: str, kind: type[D]) -> D: ...
    def device(self, id_: str, kind: type[VirtioDevice] = VirtioDevice) -> VirtioDevice:
        """The virtio device with this id, which is to be of this kind: `vm.device("disk0", BlkDevice)`. Raises KeyError, which
        names the ids there are, UsageError if it is of another kind, or StateError outside `async with`.

        An id is the one that the configuration gives, or disk0, disk1, net0, pmem0, fs0, rng, console, vsock, balloon, iommu, and
        custom0, custom1 for `devices=[...]`; where one of these was given to another device, the next that is free.
        """
        if not isinstance(id_, str):
            raise UsageError(f"device({id_!r}): an id is text, like 'disk0'")
        known = {plugged.id: plugged.device for plugged in self._plugged()}
        if id_ not in known:
            there = f"there are: {', '.join(sorted(known))}" if known else "there are none"
            raise KeyError(f"VM {self.name!r} has no device {id_!r}; {there}")
        if not isinstance(known[id_], kind):
            raise UsageError(f"device {id_!r} of VM {self.name!r} is a {type(known[id_]).__name__}, no {kind.__name__}")
        return known[id_]

    @property
    def disks(self) -> tuple[BlkDevice, ...]:
        """The disks with an image of this host, in the order of the configuration: `resize`, `refresh`, `counters`."""
        from aiovmm.devices.virtio.blk import BlkDevice

        return self._of_kind(BlkDevice)

    @property
    def nets(self) -> tuple[NetDevice, ...]:
        """The network devices that this program serves, in the order of the configuration: `link`, `counters`."""
        from aiovmm.devices.virtio.net import NetDevice

        return self._of_kind(NetDevice)

    @property
    def vsock(self) -> Vsock:
        """Streams to and from the guest: `connect(port)`, `listen(port)`. Raises StateError if the VM has no vsock device."""
        from aiovmm.devices.virtio.vsock import VsockDevice

        for device in self._of_kind(VsockDevice):
            return device.streams
        raise StateError(f"VM {self.name!r} has no vsock device: say vsock=VsockConfig() in its VMConfig")

    @property
    def balloon(self) -> BalloonDevice:
        """What the guest does without: `resize(size)`, `actual`, `stats()`. Raises StateError if the VM has no balloon."""
        from aiovmm.devices.virtio.balloon import BalloonDevice

        for device in self._of_kind(BalloonDevice):
            return device
        raise StateError(f"VM {self.name!r} has no balloon: say balloon=BalloonConfig() in its VMConfig")

    def _of_kind(self, kind: type[D]) -> tuple[D, ...]:
        return tuple(plugged.device for plugged in self._plugged() if isinstance(plugged.device, kind))
