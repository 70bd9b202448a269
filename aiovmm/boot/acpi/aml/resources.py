"""Resource descriptors, the contents of `_CRS` (ACPI 6.4, 6.4.2 small and 6.4.3 large descriptors).

A *consumed* resource is used by the device itself; a *window* is passed on by a bridge to its children (6.4.3.5.1).
All windows here have fixed bounds and no address translation. Memory windows are uncached and writable, not marked
prefetchable, so that a guest may put any BAR into them. A number that does not fit its field raises `struct.error`.
"""

from __future__ import annotations

import struct

from aiovmm.boot.acpi.aml.data import buffer

__all__ = [
    "bus_numbers",
    "fixed_memory",
    "interrupt",
    "io_ports",
    "io_window",
    "irq",
    "memory_range64",
    "memory_window32",
    "memory_window64",
    "resource_template",
]

_IRQ, _IO, _END_TAG = 0x23, 0x47, 0x79
_MEMORY32_FIXED, _DWORD_SPACE, _WORD_SPACE, _EXTENDED_INTERRUPT, _QWORD_SPACE = 0x86, 0x87, 0x88, 0x89, 0x8A

_DECODE16 = 1
_READ_WRITE = 1
_MEMORY, _PORTS, _BUSES = 0, 1, 2
_WINDOW = 0x0C  # producer (bit 0 clear), positive decode, minimum (bit 2) and maximum (bit 3) fixed
_CONSUMED = 0x0D  # the same, consumed
_CACHEABLE = 1 << 1
_ENTIRE_RANGE = 3  # an I/O window passes ISA and non-ISA ports alike

_CONSUMER, _EDGE, _ACTIVE_LOW, _SHARED = 1, 2, 4, 8  # extended interrupt, vector flags (6.4.3.6)
_IRQ_EDGE, _IRQ_ACTIVE_LOW, _IRQ_SHARED = 1, 8, 16  # IRQ descriptor, information byte (6.4.2.1)


def resource_template(*descriptors: bytes) -> bytes:
    """A buffer of `descriptors` and the end tag.

    The checksum after the tag is zero, for which the data are "treated as if the checksum operation succeeded" (6.4.2.9);
    compilers write the same, so the result can be compared with theirs byte for byte.
    """
    return buffer(b"".join(descriptors) + bytes([_END_TAG, 0]))


def io_ports(base: int, size: int) -> bytes:
    """IO (Decode16, base, base, 1, size): `size` ports (1 to 255) from `base`, consumed."""
    return struct.pack("<BBHHBB", _IO, _DECODE16, base, base, 1, size)


def irq(number: int, *, edge: bool = True, active_low: bool = False, shared: bool = False) -> bytes:
    """IRQ (...) {number}: an ISA interrupt, 0 to 15. The guest may override it from the MADT; see `interrupt`."""
    flags = (_IRQ_EDGE if edge else 0) | (_IRQ_ACTIVE_LOW if active_low else 0) | (_IRQ_SHARED if shared else 0)
    return struct.pack("<BHB", _IRQ, 1 << number, flags)


def interrupt(gsi: int, *, edge: bool = True, active_low: bool = False, shared: bool = False) -> bytes:
    """Interrupt (ResourceConsumer, ...) {gsi}: a global system interrupt, taken as it is described (6.4.3.6)."""
    flags = _CONSUMER | (_EDGE if edge else 0) | (_ACTIVE_LOW if active_low else 0) | (_SHARED if shared else 0)
    return _large(_EXTENDED_INTERRUPT, struct.pack("<BBI", flags, 1, gsi))


def fixed_memory(base: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, size): consumed memory below 4 GiB."""
    return _large(_MEMORY32_FIXED, struct.pack("<BII", _READ_WRITE, base, size))


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber: the PCI buses that a host bridge leads to, both ends included."""
    return _address_space(_WORD_SPACE, "H", _BUSES, 0, first, last - first + 1)


def io_window(base: int, size: int) -> bytes:
    """WordIO: ports that a bridge passes on."""
    return _address_space(_WORD_SPACE, "H", _PORTS, _ENTIRE_RANGE, base, size)


def memory_window32(base: int, size: int) -> bytes:
    """DWordMemory: memory below 4 GiB that a bridge passes on."""
    return _address_space(_DWORD_SPACE, "I", _MEMORY, _READ_WRITE, base, size)


def memory_window64(base: int, size: int) -> bytes:
    """QWordMemory: memory anywhere that a bridge passes on."""
    return _address_space(_QWORD_SPACE, "Q", _MEMORY, _READ_WRITE, base, size)


def memory_range64(base: int, size: int) -> bytes:
    """QWordMemory (ResourceConsumer, MinFixed, MaxFixed, Cacheable, ReadWrite): memory that the device itself is."""
    content = struct.pack("<3B5Q", _MEMORY, _CONSUMED, _CACHEABLE | _READ_WRITE, 0, base, base + size - 1, 0, size)
    return _large(_QWORD_SPACE, content)


def _address_space(tag: int, width: str, kind: int, kind_flags: int, base: int, size: int) -> bytes:
    """Type, general flags, type flags, then granularity, minimum, maximum, translation, length (6.4.3.5.1-3)."""
    if size < 1:
        raise ValueError(f"a window of {size} addresses")
    return _large(tag, struct.pack(f"<3B5{width}", kind, _WINDOW, kind_flags, 0, base, base + size - 1, 0, size))


def _large(tag: int, content: bytes) -> bytes:
    return struct.pack("<BH", tag, len(content)) + content
