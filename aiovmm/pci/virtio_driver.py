"""The guest's driver of a virtio-pci device, for tests: does to the registers what Linux's virtio_pci_modern_dev.c does."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.memory import GuestMemory
from aiovmm.pci.capabilities import VENDOR, VirtioCapType
from aiovmm.pci.driver import FoundFunction, GuestAccess, PciDriver, finished
from aiovmm.runtime.timeouts import time_limit
from aiovmm.virtqueue.config import NO_VECTOR
from aiovmm.virtqueue.driver import Arena, DriverQueue, WaitLine
from aiovmm.virtqueue.status import Status

__all__ = ["GuestMachine", "Structure", "VirtioPciDriver"]

_MSI_ADDRESS = 0xFEE00000


class GuestMachine(GuestAccess, Protocol):
    """A vCPU with an interrupt controller; testing.RecordingServices is one."""

    def on_message(self, address: int, data: int, handler: Callable[[], None]) -> None:
        """Call `handler` for each MSI with this address and data."""


@dataclass(frozen=True)
class Structure:
    """A virtio structure found in the capability list: guest-physical address and length in bytes."""

    address: int
    length: int
    capability: int


class VirtioPciDriver:
    """One function. `probe`, then any number of `start` and `reset`. Its messages are to interrupt `first_vector` and up."""

    def __init__(
        self,
        guest: GuestMachine,
        memory: GuestMemory,
        pci: PciDriver,
        slot: int,
        arena: Arena,
        *,
        first_vector: int = 0x40,
    ) -> None:
        self.guest = guest
        self.memory = memory
        self.pci = pci
        self.slot = slot
        self.arena = arena
        self.first_vector = first_vector
        self.structures: dict[VirtioCapType, Structure] = {}
        self.queues: list[DriverQueue] = []
        self.config_irq = WaitLine()
        self.notify_multiplier = 0
        self.features = 0
        self.msix = True
        self.device_features = 0  # what was offered, as `negotiate` read it
        self.function: FoundFunction

    # -- registers -------------------------------------------------------------------------------------------------------

    def load(self, kind: VirtioCapType, offset: int, size: int) -> int:
        """Read a register of a structure."""
        return int.from_bytes(self.guest.read(self.structures[kind].address + offset, size), "little")

    async def store(self, kind: VirtioCapType, offset: int, value: int, size: int) -> None:
        """Write one, and wait until the instruction has ended."""
        address = self.structures[kind].address + offset
        await finished(self.guest.write(address, value.to_bytes(size, "little")))

    def common(self, offset: int, size: int) -> int:
        """Read a common configuration register."""
        return self.load(VirtioCapType.COMMON, offset, size)

    async def set_common(self, offset: int, value: int, size: int) -> None:
        """Write a common configuration register."""
        await self.store(VirtioCapType.COMMON, offset, value, size)

    @property
    def status(self) -> Status:
        """device_status."""
        return Status(self.common(0x14, 1))

    # -- life ------------------------------------------------------------------------------------------------------------

    async def probe(self) -> None:
        """vp_modern_probe: map the structures; enable the device and MSI-X. Raises UsageError if it is not for us."""
        await self.pci.enable(self.slot)
        self.function = await self.pci.probe(self.slot)
        if self.function.vendor != 0x1AF4 or not 0x1040 <= self.function.device <= 0x107F:
            raise UsageError(
                f"slot {self.slot} is {self.function.vendor:04x}:{self.function.device:04x}, not virtio 1.x"
            )
        for cap_id, offset in self.function.capabilities:
            if cap_id == VENDOR:
                self._map_capability(offset)

    async def start(
        self, features: int | None = None, queue_sizes: Sequence[int] | None = None, *, msix: bool = True
    ) -> None:
        """Reset, negotiate (default: all that is offered), set vectors and queues up, DRIVER_OK.

        Vector 0 is the configuration's, queue i has vector i + 1; without `msix` the pin is all there is, and whoever hears it
        calls `pin_interrupt`. Raises UsageError if the device refuses.
        """
        self.msix = msix
        await self.reset()
        await self.negotiate(features)
        count = self.common(0x12, 2)
        if msix:
            await self._enable_msix(count)
        else:
            await self.pci.set_msix(self.function, enabled=False)
        sizes = queue_sizes or [0] * count
        self.queues = [await self._setup_queue(index, size) for index, size in enumerate(sizes)]
        for index in range(count):
            await self.set_common(0x16, index, 2)
            await self.set_common(0x1C, 1, 2)
        await self.set_common(0x14, self.status | Status.DRIVER_OK, 1)

    async def negotiate(self, features: int | None = None) -> None:
        """ACKNOWLEDGE, DRIVER, the features, FEATURES_OK. Raises UsageError if they are refused."""
        await self.set_common(0x14, Status.ACKNOWLEDGE, 1)
        await self.set_common(0x14, Status.ACKNOWLEDGE | Status.DRIVER, 1)
        self.device_features = 0
        for half in range(2):
            await self.set_common(0x00, half, 4)
            self.device_features |= self.common(0x04, 4) << 32 * half
        self.features = self.device_features if features is None else features
        for half in range(2):
            await self.set_common(0x08, half, 4)
            await self.set_common(0x0C, self.features >> 32 * half & 0xFFFFFFFF, 4)
        await self.set_common(0x14, self.status | Status.FEATURES_OK, 1)
        if not self.status & Status.FEATURES_OK:
            raise UsageError(f"the device refuses the features {self.features:#x} of {self.device_features:#x}")

    async def reset(self) -> None:
        """vp_reset. Raises UsageError if the status is not 0 when the write has ended."""
        await self.set_common(0x14, 0, 1)
        if self.common(0x14, 1):
            raise UsageError(f"device_status is {self.status!r} after a reset")
        for queue in self.queues:
            for part, size in ((queue.desc, 16 * queue.size), (queue.avail, 6 + 2 * queue.size)):
                self.arena.give(part, size, 4096)
            self.arena.give(queue.used_ring, 6 + 8 * queue.size, 4096)
        self.queues = []

    async def request(
        self, queue: int, readable: Sequence[bytes] = (), writable: Sequence[int] = (), timeout: float = 10.0
    ) -> bytes:
        """Offer one chain, wait for its interrupt, return what was written."""
        q = self.queues[queue]
        q.add(readable, writable)
        q.kick()
        (used,) = await q.used(timeout=timeout)
        return used.data

    def pin_interrupt(self) -> bool:
        """vp_interrupt: the ISR, which releases the pin, says whose interrupt it is. False if it is not this function's."""
        isr = self.load(VirtioCapType.ISR, 0, 1)
        if isr & 2:
            self.config_irq.pulse()
        if isr & 1:
            for queue in self.queues:
                queue.irq.pulse()
        return bool(isr)

    async def config_interrupt(self, timeout: float = 10.0) -> None:
        """Wait for a configuration change notification. Raises TimeoutError after `timeout` seconds."""
        async with time_limit(timeout, "a configuration change notification"):
            await self.config_irq.wait()
        self.config_irq.clear()

    # -- within ----------------------------------------------------------------------------------------------------------

    def _map_capability(self, offset: int) -> None:
        size, kind, bar = (self.pci.read(self.slot, offset + i, 1) for i in (2, 3, 4))
        start, length = self.pci.read(self.slot, offset + 8), self.pci.read(self.slot, offset + 12)
        base = next((b.address for b in self.function.bars if b.index == bar), None)
        if base is None or VirtioCapType(kind) in self.structures:
            return
        self.structures[VirtioCapType(kind)] = Structure(base + start, length, offset)
        if kind == VirtioCapType.NOTIFY and size >= 20:
            self.notify_multiplier = self.pci.read(self.slot, offset + 16)

    async def _enable_msix(self, queues: int) -> None:
        await self.pci.set_msix(self.function, enabled=True, masked=True)
        for vector in range(queues + 1):
            await self.pci.program_vector(self.function, vector, _MSI_ADDRESS, self.first_vector + vector)
        await self.pci.set_msix(self.function, enabled=True)
        self.guest.on_message(_MSI_ADDRESS, self.first_vector, self.config_irq.pulse)
        await self.set_common(0x10, 0, 2)
        if self.common(0x10, 2) == NO_VECTOR:
            raise UsageError("the device has no vector for its configuration")

    async def _setup_queue(self, index: int, size: int) -> DriverQueue:
        await self.set_common(0x16, index, 2)
        offered = self.common(0x18, 2)
        if not offered or self.common(0x1C, 2):
            raise UsageError(f"queue {index} does not exist, or is enabled already")
        address = self.structures[VirtioCapType.NOTIFY].address + self.common(0x1E, 2) * self.notify_multiplier
        note = struct.pack("<H", index)
        queue = DriverQueue(
            self.memory,
            self.arena,
            lambda: self._ring_doorbell(address, note),
            size=size or offered,
            features=self.features,
        )
        await self.set_common(0x18, queue.size, 2)
        for register, value in ((0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used_ring)):
            await self.set_common(register, value & 0xFFFFFFFF, 4)
            await self.set_common(register + 4, value >> 32, 4)
        if not self.msix:
            return queue
        self.guest.on_message(_MSI_ADDRESS, self.first_vector + index + 1, queue.irq.pulse)
        await self.set_common(0x1A, index + 1, 2)
        if self.common(0x1A, 2) == NO_VECTOR:
            raise UsageError(f"the device has no vector for queue {index}")
        return queue

    def _ring_doorbell(self, address: int, note: bytes) -> None:
        self.guest.write(address, note, Space.MMIO)
