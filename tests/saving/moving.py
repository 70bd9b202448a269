"""A machine of PCI devices without KVM that moves: suspended, saved as text, loaded into devices that were made anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aiovmm.memory import GuestMemory
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.virtio import VirtioPci
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.driver import Arena
from tests.saving.text import through_text

PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]

MakeDevices = Callable[[], Sequence[VirtioDevice]]


class Traveller:
    """Devices of one guest with a driver each, in memory that stays where it is. `make` makes the devices, opened by `start`."""

    def __init__(self, make: MakeDevices, memory_size: int = 16 << 20) -> None:
        self.make = make
        self.memory = GuestMemory.create([(0, memory_size)])
        self.errors: list[Exception] = []
        self.devices: list[VirtioDevice] = []
        self.functions: list[VirtioPci] = []
        self.drivers: list[VirtioPciDriver] = []
        self.services: RecordingServices
        self.root: PciRoot
        self._handlers: dict[tuple[int, int], Callable[[], None]] = {}

    async def __aenter__(self) -> Traveller:
        await self._build()
        pci = PciDriver(self.services, PLAN.ecam_base)
        for number, function in enumerate(self.functions, 1):
            arena = Arena(0x1000 + (number << 20), 1 << 20)
            driver = VirtioPciDriver(self.services, self.memory, pci, number, arena, first_vector=0x40 + 16 * number)
            await driver.probe()
            self.drivers.append(driver)
            assert function.device is self.devices[number - 1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._end()
        self.memory.close()

    async def move(self) -> None:
        """To devices that were made anew."""
        state = await self.leave()
        await self.arrive(state)
        await self.root.unsuspend()

    async def leave(self) -> Any:
        """Suspend, save, and end what was there. The state as it comes back from text."""
        await self.root.suspend()
        state = through_text(self.root.save())
        await self._end()
        return state

    async def arrive(self, state: Any) -> None:
        """Build anew and load."""
        await self._build()
        await self.root.load(state)
        again = through_text(self.root.save())
        for one in (again, state):
            for function in one["segments"][0]["functions"]:
                function["state"].pop("device", None)  # is asked for when it is suspended
        assert again == state, "what was loaded is what was saved"

    async def _build(self) -> None:
        self.services = RecordingServices(self.memory)
        self.services._handlers = self._handlers  # the guest's
        self.root = PciRoot([PLAN], self.services)
        self.root.add_config_ports()
        self.devices = list(self.make())
        self.functions = []
        for device in self.devices:
            await device.open()
            self.functions.append(VirtioPci(device, self.services, on_error=lambda _, error: self.errors.append(error)))
            self.root.add(self.functions[-1])
        for driver in self.drivers:
            driver.guest = self.services
            driver.pci.guest = self.services

    async def _end(self) -> None:
        await self.root.close()
        for device in self.devices:
            await device.close()
        self.services.close()
