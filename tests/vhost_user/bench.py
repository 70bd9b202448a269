"""A guest without KVM or kernel: a PCI segment, a driver of virtio-pci in it, and interrupts that real eventfds bring."""

from __future__ import annotations

import asyncio
from types import TracebackType

from aiovmm.devices.virtio.vhost_user import VhostUserDevice
from aiovmm.memory import GuestMemory
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.pci.services import Place
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordedMsiLine, RecordingServices
from aiovmm.vhost_user import VhostUserBackend
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.driver import Arena
from tests.limits import HANGS

_RAM = 32 << 20


class LoopServices(RecordingServices):
    """Its MSI lines deliver what other processes signal on their eventfds, as irqfds do."""

    def msi_line(self, name: str, place: Place) -> RecordedMsiLine:
        line = super().msi_line(name, place)
        if line.fd is not None:
            asyncio.get_running_loop().add_reader(line.fd, line.collect)
        close = line.close

        def closed() -> None:
            if line.fd is not None:
                asyncio.get_running_loop().remove_reader(line.fd)
            close()

        line.close = closed  # type: ignore[method-assign]
        return line


class Guest:
    """`async with Guest(device) as guest: await guest.driver.start(); ...`. Opens and closes the device. `errors` is what
    broke it, and is raised at the end unless a test has taken it."""

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.errors: list[Exception] = []
        self.memory = GuestMemory.create([(0, _RAM), (_RAM + (1 << 20), 1 << 20)])
        self.services = LoopServices(self.memory)
        self.function: VirtioPci
        self.driver: VirtioPciDriver

    async def __aenter__(self) -> Guest:
        try:
            await self.device.open()
        except BaseException:
            self.memory.close()
            raise
        plan = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]
        segment = PciSegment(plan, self.services)
        self.function = VirtioPci(self.device, self.services, on_error=lambda device, exc: self.errors.append(exc))
        slot = segment.add(self.function)
        arena = Arena(0x10000, _RAM - 0x10000)
        self.driver = VirtioPciDriver(self.services, self.memory, PciDriver(self.services, plan.ecam_base), slot, arena)
        await self.driver.probe()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.function.close()
        await self.device.close()
        self.services.close()
        self.memory.close()
        if exc is None and self.errors:
            raise self.errors[0]
        if exc is not None:
            for error in self.errors:
                exc.add_note(f"the device broke: {error}")

    @property
    def backend(self) -> VhostUserBackend:
        """The front end's side of a vhost-user device."""
        assert isinstance(self.device, VhostUserDevice)
        assert self.device.backend is not None
        return self.device.backend

    async def broken(self, timeout: float = HANGS) -> Exception:
        """Wait until the device asks for a reset; why."""
        async with asyncio.timeout(timeout):
            while not self.errors:  # noqa: ASYNC110 - what is waited for is an entry of a list
                await asyncio.sleep(0.001)
        return self.errors.pop(0)
