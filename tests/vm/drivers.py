"""Drivers for the devices of a running VM, from the monitor's side: they do to registers and rings what a guest's would, whose
own code here is bare metal. Interrupts go to the guest; what has come back is looked for in the rings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiovmm import VM, ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, RngConfig, VMConfig, VsockConfig
from aiovmm.bus import Space
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.virtqueue.driver import Arena
from tests.limits import HANGS
from tests.vm.guest import config, until

__all__ = ["Driver", "five_devices", "start_driver", "start_drivers"]


def five_devices(folder: Path, name: str = "guest") -> VMConfig:
    """A guest that prints hello and halts, with a disk, a card (a TAP of its own), a console, entropy and vsock."""
    disk = folder / f"{name}.raw"
    disk.write_bytes(bytes(1 << 20))
    return config(
        "hi",
        name=name,
        disks=(DiskConfig(path=disk),),
        nets=(NetConfig(),),
        console=ConsoleConfig(mode=ConsoleMode.NULL),
        rng=RngConfig(),
        vsock=VsockConfig(socket=folder / f"{name}.vsock"),
    )


class _Side:
    """The bus as a GuestMachine."""

    def __init__(self, vm: VM) -> None:
        self._bus = vm.machine.bus

    def read(self, address: int, size: int, space: Space = Space.MMIO) -> bytes:
        data = self._bus.read(space, address, size)
        assert isinstance(data, bytes)
        return data

    def write(self, address: int, data: bytes, space: Space = Space.MMIO) -> Awaitable[None] | None:
        return self._bus.write(space, address, data)

    def on_message(self, address: int, data: int, handler: Callable[[], None]) -> None:
        """The guest has them."""


class Driver(VirtioPciDriver):
    """Of one device. Waits by looking."""

    async def request(self, queue: int, readable: object = (), writable: object = (), timeout: float = HANGS) -> bytes:
        """Offer one chain, wait until it is back, return what was written."""
        q = self.queues[queue]
        q.add(readable, writable)  # type: ignore[arg-type]
        q.kick()
        back: list[bytes] = []

        def looked() -> bool:
            back.extend(used.data for used in q.poll())
            return bool(back)

        await until(looked, timeout)
        return back[0]


async def start_driver(vm: VM, id_: str, base: int = 0x140000, size: int = 0x80000) -> Driver:
    """A driver for one device, of whichever segment."""
    side, place = _Side(vm), vm.machine.devices.address(id_)
    base_of_config = vm.machine.pci.root.segments[place.segment].plan.ecam_base
    driver = Driver(side, vm.machine.memory, PciDriver(side, base_of_config), place.slot, Arena(base, size))
    await driver.probe()
    await driver.start(queue_sizes=None)
    return driver


async def start_drivers(vm: VM, base: int = 0x140000, size: int = 0x80000) -> dict[str, Driver]:
    """A driver for each device, by its name, started with the memory [base, base + size) for all their rings."""
    side, arena = _Side(vm), Arena(base, size)
    (segment,) = vm.machine.pci.root.segments
    drivers = {}
    for slot, function in sorted(segment.functions.items()):
        if slot:
            driver = Driver(side, vm.machine.memory, PciDriver(side, segment.plan.ecam_base), slot, arena)
            await driver.probe()
            await driver.start(queue_sizes=None)
            drivers[function.name] = driver
    return drivers
