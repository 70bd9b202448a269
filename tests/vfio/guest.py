"""A host device on a PCI bus without KVM, and the guest's side of it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aiovmm.devices.ioapic import IntxLine, IntxPins, IoApic
from aiovmm.errors import HostError
from aiovmm.memory import GuestMemory
from aiovmm.native.mapping import Mapping
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.pci.root import PciRoot
from aiovmm.pci.services import Place
from aiovmm.testing.pci import ECAM_BASE, RecordingServices
from aiovmm.vfio import Container, HostDevice, VfioFunction
from tests.vfio.kernel import CONFIG, TABLE, FakeDevice, FakeKernel

ADDRESS = "0000:01:00.0"
ECAM = 0xE800_0000 + (1 << 15)  # slot 1
MEM32 = Window(0xC000_0000, 640 << 20)
MEM64 = Window(4 << 30, 1 << 39)
BASE = MEM64.base + (1 << 30)


@dataclass
class Slot:
    services: Services
    address: int
    size: int
    host: int

    def close(self) -> None:
        if self in self.services.slots:
            self.services.slots.remove(self)


class Messages:
    """What the I/O APIC sends, and its routes."""

    refused: Callable[[int, int], None] | None = None

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.routes: dict[int, int] = {}

    def signal(self, address: int, data: int) -> bool:
        self.sent.append(data & 0xFF)
        return True

    def route(self, pin: int, address: int, data: int | None) -> None:
        if data is None:
            del self.routes[pin]
        else:
            self.routes[pin] = data

    def ended_in_vain(self) -> None:
        return


class Services(RecordingServices):
    """With the memory slots that KVM would have, and the machine's I/O APIC."""

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self.vectors = Messages()
        self.ioapic = IoApic(self.vectors)
        self._intx = IntxPins(self.ioapic)
        self.slots: list[Slot] = []
        self.refuse_slots = False

    def memory_slot(self, address: int, size: int, mapping: Mapping) -> Slot:
        if self.refuse_slots:
            raise HostError("mapping", 28)
        assert all(address >= s.address + s.size or s.address >= address + size for s in self.slots)
        slot = Slot(self, address, size, mapping.host)
        self.slots.append(slot)
        return slot

    def intx_line(self, ended: Callable[[], None], place: Place) -> IntxLine:
        return self._intx.line(ended, place.slot)


@dataclass
class Guest:
    """The guest's side of one function in slot 1."""

    kernel: FakeKernel
    hardware: FakeDevice
    host: HostDevice
    services: Services
    function: VfioFunction
    root: PciRoot
    errors: list[tuple[str, Exception]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.services.read(ECAM + offset, size), "little")

    def set_config(self, offset: int, size: int, value: int) -> object:
        return self.services.write(ECAM + offset, value.to_bytes(size, "little"))

    def place(self, address: int) -> None:
        """BAR 0 there, and memory on."""
        self.set_config(0x10, 4, address & 0xFFFF_FFFF)
        self.set_config(0x14, 4, address >> 32)
        self.set_config(0x04, 2, 0x0006)

    def write(self, address: int, data: bytes) -> None:
        self.services.write(address, data)

    def program(self, bar: int, vector: int, *, masked: bool, data: int = 0x40) -> None:
        for n, word in enumerate((0xFEE0_0000, 0, data + vector, int(masked))):
            self.write(bar + TABLE + 16 * vector + 4 * n, struct.pack("<I", word))

    @property
    def command(self) -> int:
        """Of the device itself."""
        return int.from_bytes(self.hardware.bytes_at(CONFIG, 4, 2), "little")


async def plug(
    kernel: FakeKernel, memory: GuestMemory, hardware: FakeDevice, trapped_bars: Collection[int] = ()
) -> Guest:
    host = HostDevice(kernel.path(ADDRESS), Container(kernel), kernel, trapped_bars=trapped_bars)
    host.open()
    errors: list[tuple[str, Exception]] = []
    heard = asyncio.Event()

    def on_error(name: str, exc: Exception) -> None:
        errors.append((name, exc))
        heard.set()

    services = Services(memory)
    function = VfioFunction(host, services, on_error, Place(0, 1))
    await function.start()
    root = PciRoot(plan_segments(1, ECAM_BASE, MEM32, MEM64), services)
    root.add(function)
    return Guest(kernel, hardware, host, services, function, root, errors, heard)
