"""The guest's side of PCI, for tests: finds functions, sizes BARs and walks capabilities in the way Linux does."""

from __future__ import annotations

import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from aiovmm.bus import Space
from aiovmm.pci.bar import FIRST_BAR, BarKind
from aiovmm.pci.capabilities import MSIX
from aiovmm.pci.config_ports import CONFIG_PORTS

__all__ = ["FoundBar", "FoundFunction", "GuestAccess", "PciDriver"]

_COMMAND, _STATUS, _CAPABILITIES = 0x04, 0x06, 0x34
_ABSENT = (0xFFFFFFFF, 0x00000000, 0x0000FFFF, 0xFFFF0000)  # what Linux takes for an empty slot


class GuestAccess(Protocol):
    """What a vCPU can do; testing.RecordingServices is one."""

    def read(self, address: int, size: int, space: Space = Space.MMIO) -> bytes:
        """Load `size` bytes."""

    def write(self, address: int, data: bytes, space: Space = Space.MMIO) -> Awaitable[None] | None:
        """Store; the instruction ends when the result, if there is one, is done."""


@dataclass(frozen=True)
class FoundBar:
    """A BAR as sizing showed it; address and size in bytes."""

    index: int
    kind: BarKind
    address: int
    size: int
    prefetchable: bool


@dataclass(frozen=True)
class FoundFunction:
    """A function as enumeration showed it."""

    slot: int
    vendor: int
    device: int
    class_code: int
    subsystem: tuple[int, int]
    bars: tuple[FoundBar, ...]
    capabilities: tuple[tuple[int, int], ...]

    def capability(self, cap_id: int) -> int:
        """Offset of the first capability with this id. Raises LookupError."""
        for found, offset in self.capabilities:
            if found == cap_id:
                return offset
        raise LookupError(f"no capability {cap_id:#x} in slot {self.slot}")


class PciDriver:
    """Bus 0 of one segment through its ECAM, or (`ecam_base` None) through ports 0xCF8 and 0xCFC."""

    def __init__(self, guest: GuestAccess, ecam_base: int | None) -> None:
        self.guest = guest
        self._ecam = ecam_base

    def read(self, slot: int, offset: int, size: int = 4) -> int:
        """A configuration register."""
        return int.from_bytes(self.guest.read(*self._at(slot, offset, size)), "little")

    async def write(self, slot: int, offset: int, value: int, size: int = 4) -> None:
        """Write a configuration register and wait until the instruction has ended."""
        address, _, space = self._at(slot, offset, size)
        await finished(self.guest.write(address, value.to_bytes(size, "little"), space))

    async def enumerate(self) -> list[FoundFunction]:
        """All functions on the bus, as pci_scan_slot and pci_setup_device find them."""
        return [await self.probe(slot) for slot in range(32) if self.read(slot, 0) not in _ABSENT]

    async def probe(self, slot: int) -> FoundFunction:
        """Everything about the function in `slot`."""
        vendor, device = struct.unpack("<HH", self.read(slot, 0).to_bytes(4, "little"))
        subsystem = self.read(slot, 0x2C)
        return FoundFunction(
            slot,
            vendor,
            device,
            self.read(slot, 0x08) >> 8,
            (subsystem & 0xFFFF, subsystem >> 16),
            tuple(await self.size_bars(slot)),
            tuple(self.walk_capabilities(slot)),
        )

    async def size_bars(self, slot: int) -> list[FoundBar]:
        """__pci_read_base: decode off, ones written and read back, the address restored, decode on again."""
        command = self.read(slot, _COMMAND, 2)
        await self.write(slot, _COMMAND, command & ~3, 2)
        found = []
        index = 0
        while index < 6:
            bar = await self._size_bar(slot, index)
            if bar is not None:
                found.append(bar)
            index += 2 if bar is not None and bar.kind is BarKind.MEM64 else 1
        await self.write(slot, _COMMAND, command, 2)
        return found

    def walk_capabilities(self, slot: int) -> list[tuple[int, int]]:
        """(id, offset) of each capability, at most 48 of them, as __pci_find_next_cap_ttl does."""
        found: list[tuple[int, int]] = []
        if not self.read(slot, _STATUS, 2) & 0x10:
            return found
        offset = self.read(slot, _CAPABILITIES, 1) & ~3
        while offset >= 0x40 and len(found) < 48:
            found.append((self.read(slot, offset, 1), offset))
            offset = self.read(slot, offset + 1, 1) & ~3
        return found

    async def enable(self, slot: int) -> None:
        """pci_enable_device and pci_set_master."""
        await self.write(slot, _COMMAND, self.read(slot, _COMMAND, 2) | 7, 2)

    async def set_msix(self, function: FoundFunction, *, enabled: bool, masked: bool = False) -> None:
        """Write the message control word."""
        control = function.capability(MSIX) + 2
        value = self.read(function.slot, control, 2) & 0x3FFF
        await self.write(function.slot, control, value | enabled << 15 | masked << 14, 2)

    async def program_vector(
        self, function: FoundFunction, vector: int, address: int, data: int, *, masked: bool = False
    ) -> None:
        """Write one MSI-X table entry, masked while it changes, as __pci_write_msi_msg does."""
        table = self.read(function.slot, function.capability(MSIX) + 4)
        bar = next(b for b in function.bars if b.index == table & 7)
        entry = bar.address + (table & ~7) + 16 * vector
        for offset, value in ((12, 1), (0, address & 0xFFFFFFFF), (4, address >> 32), (8, data), (12, int(masked))):
            await finished(self.guest.write(entry + offset, value.to_bytes(4, "little")))

    async def _size_bar(self, slot: int, index: int) -> FoundBar | None:
        register = FIRST_BAR + 4 * index
        flags, address, size = await self._probe_register(slot, register)
        if not size:
            return None
        if flags & 1:
            return FoundBar(index, BarKind.IO, address & ~3, _extent(size & ~3, 4), False)
        kind = BarKind.MEM64 if flags & 6 == 4 else BarKind.MEM32
        address, size = address & ~0xF, size & ~0xF
        if kind is BarKind.MEM64:
            _, high, high_size = await self._probe_register(slot, register + 4)
            address, size = address | high << 32, size | high_size << 32
        return FoundBar(index, kind, address, _extent(size, 8 if kind is BarKind.MEM64 else 4), bool(flags & 8))

    async def _probe_register(self, slot: int, register: int) -> tuple[int, int, int]:
        old = self.read(slot, register)
        await self.write(slot, register, 0xFFFFFFFF)
        mask = self.read(slot, register)
        await self.write(slot, register, old)
        return old & 0xF, old, mask

    def _at(self, slot: int, offset: int, size: int) -> tuple[int, int, Space]:
        if self._ecam is not None:
            return self._ecam + (slot << 15) + offset, size, Space.MMIO
        address = 1 << 31 | slot << 11 | offset & 0xFC
        self.guest.write(CONFIG_PORTS, address.to_bytes(4, "little"), Space.PIO)
        return CONFIG_PORTS + 4 + (offset & 3), size, Space.PIO


async def finished(result: Awaitable[None] | None) -> None:
    """Wait as a vCPU does for a write to end."""
    if result is not None:
        await result


def _extent(mask: int, width: int) -> int:
    return (mask & -mask) if mask else 1 << 8 * width
