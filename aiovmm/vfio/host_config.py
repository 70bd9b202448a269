"""What the configuration space of a host device says: identity, BARs, the chain of capabilities. Pure.

The device is not trusted to be sane: walks are bounded, and a capability that does not fit is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.config_space import Identity

__all__ = ["Capability", "capabilities", "identity", "memory_bars"]

EXPRESS, MSI, MSIX, POWER, VENDOR, VPD = 0x10, 0x05, 0x11, 0x01, 0x09, 0x03
_STATUS, _POINTER, _CAP_LIST = 0x06, 0x34, 0x10
_SMALLEST_BAR = 16
_FIRST, _END = 0x40, 0x100
_MOST = 48  # capabilities of four bytes that fit


@dataclass(frozen=True)
class Capability:
    """Capability `id`, `size` bytes at `offset`."""

    id: int
    offset: int
    size: int


def _word(config: bytes, offset: int, size: int = 2) -> int:
    return int.from_bytes(config[offset : offset + size], "little")


def identity(config: bytes) -> Identity:
    """Who the device says it is."""
    return Identity(
        _word(config, 0x00),
        _word(config, 0x02),
        _word(config, 0x09, 3),
        config[0x08],
        _word(config, 0x2C),
        _word(config, 0x2E),
    )


def memory_bars(config: bytes, sizes: Sequence[int]) -> tuple[Bar, ...]:
    """The memory BARs, their `sizes` (in bytes, by index; 0: none) being known to the host. I/O BARs are left out."""
    bars: list[Bar] = []
    for index, size in enumerate(sizes):
        flags = config[0x10 + 4 * index]
        upper_half = bool(bars) and bars[-1].kind is BarKind.MEM64 and bars[-1].index == index - 1
        if size < _SMALLEST_BAR or flags & 1 or upper_half:
            continue
        kind = BarKind.MEM64 if flags & 6 == 4 and index < 5 else BarKind.MEM32
        bars.append(Bar(index, kind, size, prefetchable=bool(flags & 8)))
    return tuple(bars)


def capabilities(config: bytes) -> tuple[Capability, ...]:
    """Those of kinds that are known, in the order of the chain."""
    found: list[Capability] = []
    if not config[_STATUS] & _CAP_LIST:
        return ()
    offset = config[_POINTER] & ~3
    seen: set[int] = set()
    while _FIRST <= offset < _END and offset not in seen and len(seen) < _MOST:
        seen.add(offset)
        size = _size(config, offset)
        if size and offset + size <= _END and not any(_overlap(offset, size, c) for c in found):
            found.append(Capability(config[offset], offset, size))
        offset = config[offset + 1] & ~3
    return tuple(found)


def _overlap(offset: int, size: int, other: Capability) -> bool:
    return offset < other.offset + other.size and other.offset < offset + size


def _size(config: bytes, offset: int) -> int:
    """Bytes of the capability at `offset`; 0 for one that guests are not shown."""
    kind = config[offset]
    if kind == MSI:  # PCI Local Bus 3.0, 6.8.1
        control = _word(config, offset + 2)
        return 10 + 4 * bool(control & 0x80) + 10 * bool(control & 0x100)
    if kind == EXPRESS:  # PCI Express Base 4.0, 7.5.3: version 1 of an endpoint ends after Link Status
        return 0x3C if _word(config, offset + 2) & 0xF >= 2 else 0x14
    if kind == VENDOR:  # a length byte follows the link
        return max(config[offset + 2], 3) if offset + 2 < _END else 0
    return {MSIX: 12, POWER: 8, VPD: 8}.get(kind, 0)
