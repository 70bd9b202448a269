"""The configuration space that a guest sees of a host device. Pure.

    ours            identity, command, BARs, MSI, MSI-X, the power state (stored, never carried out: the device stays in D0)
    the device's    PCI Express, vital product data and vendor capabilities: read and, by its kernel's rules, written;
                    whether it asserts INTx
    not there       I/O BARs, expansion ROM, extended space, other capabilities

The interrupt pin is INTA whatever it is on the host: the function is the only one of its slot.

Capabilities keep their offsets, for some drivers know them by heart; those that are not shown are unlinked. A PCI Express
endpoint becomes an integrated one, since it sits on the root bus with no port above it (PCI Express Base 4.0, 1.3.2.3). A
function level reset is taken out of what is written: it lasts 100 ms, and whoever holds this space carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiovmm.pci.bar import Bar
from aiovmm.pci.config_space import ConfigSpace
from aiovmm.vfio import host_config
from aiovmm.vfio.host_config import EXPRESS, MSI, MSIX, POWER, VENDOR, VPD, Capability
from aiovmm.vfio.msi import MsiCapability

__all__ = ["DeviceWrite", "MsixLayout", "VirtualConfig"]

_STATUS, _POINTER, _PIN = 0x06, 0x34, 0x3D
_CAP_LIST, _INTX_STATUS = 0x10, 0x08
_INTA = 1
_DEVICE_CONTROL = 8  # of the PCI Express capability
_FLR = 0x8000
_TYPE_MASK, _INTEGRATED = 0x00F0, 0x0090


@dataclass(frozen=True)
class MsixLayout:
    """Where the MSI-X structures are: capability, number of vectors, (BAR, offset) of table and pending bits."""

    offset: int
    vectors: int
    table: tuple[int, int]
    pending: tuple[int, int]

    @property
    def table_size(self) -> int:
        """Bytes."""
        return 16 * self.vectors

    @property
    def pending_size(self) -> int:
        """Bytes."""
        return (self.vectors + 63) // 64 * 8

    def fits(self, bars: Mapping[int, int]) -> bool:
        """Whether both lie in BARs of these sizes, and apart."""
        (bar, table), (other, pending) = self.table, self.pending
        apart = bar != other or table + self.table_size <= pending or pending + self.pending_size <= table
        inside = table + self.table_size <= bars.get(bar, 0) and pending + self.pending_size <= bars.get(other, 0)
        return apart and inside


@dataclass(frozen=True)
class DeviceWrite:
    """An effect: store `data` at `offset` of the device's own configuration space."""

    offset: int
    data: bytes


class VirtualConfig:
    """`host` is the first 256 bytes of the device's space, `bar_sizes` the bytes of its BARs by index; `intx`: it has a pin."""

    def __init__(self, host: bytes, bar_sizes: Sequence[int], *, intx: bool = False) -> None:
        self.space = ConfigSpace(host_config.identity(host))
        self.bars: tuple[Bar, ...] = host_config.memory_bars(host, bar_sizes)
        self.live: tuple[tuple[int, int], ...] = ()
        """(offset, size) of what is the device's: never answered from `space`."""
        self.intx = intx
        if intx:
            self.space.define(_PIN, _INTA, 1)
        self.msi: MsiCapability | None = None
        self.msix: MsixLayout | None = None
        self._express: Capability | None = None
        link = _POINTER
        for capability in host_config.capabilities(host):
            if self._show(capability, host):
                self.space.define(capability.offset, capability.id, 1)
                self.space.define(link, capability.offset, 1)
                link = capability.offset + 1
                self.space.put(_STATUS, 1, _CAP_LIST)

    @property
    def watched(self) -> tuple[tuple[int, int], ...]:
        """(offset, size) of all that must be read from the device: `live`, and the status register where it tells of INTx."""
        return (*self.live, (_STATUS, 1)) if self.intx else self.live

    def overlay(self, offset: int, data: bytes, device: bytes) -> bytes:
        """`data` as read from `space` at `offset`, with what is the device's taken from `device`, which was read at the same."""
        mixed = bytearray(data)
        for start, size in self.live:
            low, high = max(start, offset), min(start + size, offset + len(data))
            if low < high:
                mixed[low - offset : high - offset] = device[low - offset : high - offset]
        if self.intx and 0 <= (at := _STATUS - offset) < len(data):
            mixed[at] = mixed[at] & ~_INTX_STATUS & 0xFF | device[at] & _INTX_STATUS
        if self._express is not None:
            self._integrate(offset, mixed, self._express.offset + 2)
        return bytes(mixed)

    def write(self, offset: int, data: bytes) -> tuple[list[DeviceWrite], bool]:
        """The guest writes: `space` takes what is ours; what goes to the device, and whether the guest asks for a reset."""
        self.space.write(offset, data)
        writes, reset = [], False
        for start, size in self.live:
            low, high = max(start, offset), min(start + size, offset + len(data))
            if low < high:
                piece = bytearray(data[low - offset : high - offset])
                reset |= self._take_reset(low, piece)
                writes.append(DeviceWrite(low, bytes(piece)))
        return writes, reset

    def _show(self, capability: Capability, host: bytes) -> bool:
        """Lay a capability out; False if the guest is not to see it."""
        offset = capability.offset
        if capability.id == MSI:
            self.msi = MsiCapability(self.space, offset, int.from_bytes(host[offset + 2 : offset + 4], "little"))
        elif capability.id == MSIX:
            return self._show_msix(offset, host)
        elif capability.id == POWER:
            known = int.from_bytes(host[offset + 2 : offset + 4], "little") & 0x0007  # the version: no D1, D2 or PME
            self.space.define(offset + 2, known, 2)
            self.space.define(offset + 4, 0x0008, 2, writable=0x0003)  # No_Soft_Reset, and the power state
        else:
            assert capability.id in (EXPRESS, VENDOR, VPD)
            self.live += ((offset + 2, capability.size - 2),)
            if capability.id == EXPRESS:
                self._express = capability
        return True

    def _show_msix(self, offset: int, host: bytes) -> bool:
        control, table, pending = (int.from_bytes(host[offset + at : offset + at + n], "little") for at, n in _MSIX)
        vectors = (control & 0x7FF) + 1
        layout = MsixLayout(offset, vectors, (table & 7, table & ~7), (pending & 7, pending & ~7))
        if not layout.fits({bar.index: bar.size for bar in self.bars}):
            return False
        self.msix = layout
        self.space.define(offset + 2, control & 0x7FF, 2, writable=0xC000)
        self.space.define(offset + 4, table, 4)
        self.space.define(offset + 8, pending, 4)
        return True

    @staticmethod
    def _integrate(offset: int, data: bytearray, register: int) -> None:
        """Device/port type 9 in the low byte of the PCI Express capabilities register, for types 0 and 1."""
        at = register - offset
        if 0 <= at < len(data) and data[at] & _TYPE_MASK in (0x00, 0x10):
            data[at] = data[at] & ~_TYPE_MASK & 0xFF | _INTEGRATED

    def _take_reset(self, offset: int, data: bytearray) -> bool:
        """Whether Initiate Function Level Reset is written; cleared in `data`."""
        if self._express is None:
            return False
        at = self._express.offset + _DEVICE_CONTROL + 1 - offset
        if not (0 <= at < len(data) and data[at] & _FLR >> 8):
            return False
        data[at] &= ~(_FLR >> 8) & 0xFF
        return True


_MSIX = ((2, 2), (4, 4), (8, 4))
