"""Base address registers (PCI Local Bus 3.0, 6.2.5.1).

A BAR's whole behaviour is its write mask: the bits below its size are fixed, so the sizing protocol (write ones, read
back the size) and partial writes of any width need no code. The address counts only while the command register
lets the function decode that space.
"""

from __future__ import annotations

import enum
from functools import cached_property

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.pci.config_space import COMMAND, COMMAND_IO, COMMAND_MEM, ConfigSpace
from aiovmm.runtime.dataclass import dataclass

__all__ = ["Bar", "BarKind"]

FIRST_BAR = 0x10
BARS_END = 0x28
_PAGE = 4096


class BarKind(enum.Enum):
    """Which space a BAR decodes, and how wide its address is."""

    IO = "io"
    MEM32 = "mem32"
    MEM64 = "mem64"


@dataclass(frozen=True)
class Bar:
    """BAR `index` (0..5) of `size` bytes, a power of two; a 64-bit one takes the next register too. Raises UsageError."""

    index: int
    kind: BarKind
    size: int
    prefetchable: bool = False

    def __post_init__(self) -> None:
        low, high = (4, 256) if self.kind is BarKind.IO else (16, 1 << (63 if self.kind is BarKind.MEM64 else 31))
        if self.size & (self.size - 1) or not low <= self.size <= high:
            raise UsageError(f"BAR {self.index}: {self.size:#x} bytes is not a power of two in [{low:#x}, {high:#x}]")
        if not 0 <= self.index <= (4 if self.kind is BarKind.MEM64 else 5):
            raise UsageError(f"BAR {self.index} does not exist for {self.kind.value}")

    @cached_property
    def space(self) -> Space:
        """The address space it decodes."""
        return Space.PIO if self.kind is BarKind.IO else Space.MMIO

    @cached_property
    def register(self) -> int:
        """Its offset in configuration space."""
        return FIRST_BAR + 4 * self.index

    @cached_property
    def width(self) -> int:
        """Bytes of configuration space it takes."""
        return 8 if self.kind is BarKind.MEM64 else 4

    @cached_property
    def alignment(self) -> int:
        """What its first address should be aligned to: its size, and a page so that it can be mapped alone."""
        return self.size if self.kind is BarKind.IO else max(self.size, _PAGE)

    def install(self, config: ConfigSpace) -> None:
        """Lay out the register and let the command register's decode bit be written."""
        config.define(self.register, self._flags, self.width, writable=self._address_mask)
        config.allow(COMMAND, 2, self._decode_bit)

    def assign(self, config: ConfigSpace, address: int) -> None:
        """Program `address` as firmware would."""
        config.put(self.register, self.width, address & self._address_mask | self._flags)

    def address(self, config: ConfigSpace) -> int:
        """The address it holds, decoded or not."""
        return config.get(self.register, self.width) & self._address_mask

    def decoded(self, config: ConfigSpace) -> int | None:
        """The address it answers at, or None while its space is off in the command register."""
        if not config.get(COMMAND, 2) & self._decode_bit:
            return None
        return self.address(config)

    @cached_property
    def _flags(self) -> int:
        if self.kind is BarKind.IO:
            return 0x1
        return (0x4 if self.kind is BarKind.MEM64 else 0x0) | (0x8 if self.prefetchable else 0x0)

    @cached_property
    def _address_mask(self) -> int:
        return (1 << 8 * self.width) - self.size

    @cached_property
    def _decode_bit(self) -> int:
        return COMMAND_IO if self.kind is BarKind.IO else COMMAND_MEM
