"""What of an ELF64 x86-64 kernel is loaded where, and where it is entered. Pure: parses bytes, validates completely.

Source: System V ABI (gABI), chapters 4 and 5; Xen public/elfnote.h for the PVH note.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from aiovmm.dataclass import dataclass

__all__ = ["ELF_MAGIC", "ElfError", "ElfImage", "ElfSegment", "is_static", "machine_name", "parse", "reader"]

ELF_MAGIC = b"\x7fELF"
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")
_ELFCLASS64, _ELFDATA2LSB = 2, 1
_ET_EXEC, _ET_DYN = 2, 3
_EM_X86_64 = 62
_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18
_MAX_SEGMENTS = 64
_MAX_NOTES = 1 << 16  # bytes
_MACHINES = {3: "32-bit x86", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "s390", 40: "32-bit ARM"} | {
    183: "arm64",
    243: "RISC-V",
    258: "LoongArch",
}


Read = Callable[[int, int], bytes]


class ElfError(ValueError):
    """The file is not an ELF64 x86-64 executable that can be loaded; the message says why."""


@dataclass(frozen=True)
class ElfSegment:
    """`file_size` bytes at file `offset` go to guest-physical `address`; the rest up to `memory_size` is zero."""

    offset: int
    file_size: int
    address: int
    memory_size: int


@dataclass(frozen=True)
class ElfImage:
    """Loadable segments, the entry's physical address, and the 32-bit PVH entry if a note names one."""

    segments: tuple[ElfSegment, ...]
    entry: int
    pvh_entry: int | None

    @property
    def end(self) -> int:
        """The first physical address after all segments."""
        return max(s.address + s.memory_size for s in self.segments)

    @property
    def start(self) -> int:
        return min(s.address for s in self.segments)


def machine_name(machine: int) -> str:
    """A name for an ELF e_machine value."""
    return _MACHINES.get(machine, f"machine number {machine}")


def is_static(data: bytes) -> bool:
    """Is `data` an x86-64 program that runs without a dynamic linker (no PT_INTERP)?"""
    try:
        _, headers = _headers(reader(data), len(data))
    except ElfError:
        return False
    return all(h[0] != _PT_INTERP for h in headers)


def reader(data: bytes) -> Read:
    """`data` as parse() takes it."""
    return lambda offset, size: data[offset : offset + size]


def parse(read: Read, size: int) -> ElfImage:
    """The image in a file of `size` bytes, of which `read(offset, size)` returns parts. Raises ElfError."""
    entry, headers = _headers(read, size)
    loads = [h for h in headers if h[0] == _PT_LOAD and h[6]]
    segments = tuple(_segment(h, size) for h in loads)
    if not segments:
        raise ElfError("ELF file with nothing to load")
    notes = (read(h[2], min(h[5], _MAX_NOTES)) for h in headers if h[0] == _PT_NOTE)
    pvh = next((e for note in notes for e in _pvh_entries(note)), None)
    image = ElfImage(segments, _physical(entry, loads), pvh)
    if not any(s.address <= image.entry < s.address + s.memory_size for s in segments) and pvh is None:
        raise ElfError(f"the ELF entry point {entry:#x} lies in no loaded segment")
    return image


def _headers(read: Read, size: int) -> tuple[int, list[tuple[int, ...]]]:
    """The entry point and the program headers."""
    entry, phoff, phentsize, phnum = _header(read(0, _EHDR.size))
    if phnum == 0:
        raise ElfError("ELF file without program headers: an object file, not a linked kernel")
    if phnum > _MAX_SEGMENTS or phentsize != _PHDR.size:
        raise ElfError(f"ELF file with {phnum} program headers of {phentsize} bytes")
    table = read(phoff, phnum * _PHDR.size) if phoff < size else b""
    if len(table) != phnum * _PHDR.size:
        raise ElfError("truncated: the ELF program headers lie beyond the end of the file")
    return entry, list(_PHDR.iter_unpack(table))


def _header(data: bytes) -> tuple[int, int, int, int]:
    if data[:4] != ELF_MAGIC:
        raise ElfError("not an ELF file")
    if len(data) < 20:
        raise ElfError("truncated: shorter than an ELF header")
    machine = int.from_bytes(data[18:20], "little" if data[5] == _ELFDATA2LSB else "big")
    if data[4] != _ELFCLASS64 or data[5] != _ELFDATA2LSB or machine != _EM_X86_64:
        bits = "64" if data[4] == _ELFCLASS64 else "32"
        raise ElfError(f"a {bits}-bit ELF file for {machine_name(machine)}; this machine runs x86-64 kernels")
    if len(data) < _EHDR.size:
        raise ElfError("truncated: shorter than an ELF header")
    fields = _EHDR.unpack_from(data)
    if fields[1] not in (_ET_EXEC, _ET_DYN):
        raise ElfError("an ELF file that is not an executable (an object file, a module or a core dump)")
    return fields[4], fields[5], fields[9], fields[10]


def _segment(header: tuple[int, ...], size: int) -> ElfSegment:
    _, _, offset, _, address, file_size, memory_size, _ = header
    if file_size > memory_size or address + memory_size >= 1 << 52:
        raise ElfError("an ELF segment with impossible sizes")
    if offset + file_size > size:
        raise ElfError(f"truncated: a segment ends at byte {offset + file_size} of a file of {size}")
    return ElfSegment(offset, file_size, address, memory_size)


def _physical(entry: int, loads: list[tuple[int, ...]]) -> int:
    """vmlinux names a physical entry; a linker that names the virtual one is translated by the segment it is in."""
    if any(h[4] <= entry < h[4] + h[6] for h in loads):
        return entry
    for _, _, _, virtual, physical, _, memory_size, _ in loads:
        if virtual <= entry < virtual + memory_size:
            return entry - virtual + physical
    return entry


def _pvh_entries(notes: bytes) -> Iterator[int]:
    """Values of all XEN_ELFNOTE_PHYS32_ENTRY in one PT_NOTE segment (4-byte aligned notes, as Linux has them)."""
    at = 0
    while at + _NHDR.size <= len(notes):
        name_size, desc_size, kind = _NHDR.unpack_from(notes, at)
        name = at + _NHDR.size
        desc = name + (name_size + 3 & ~3)
        at = desc + (desc_size + 3 & ~3)
        if kind == _XEN_ELFNOTE_PHYS32_ENTRY and notes[name : name + 4] == b"Xen\0" and desc_size in (4, 8):
            yield int.from_bytes(notes[desc : desc + desc_size], "little")
