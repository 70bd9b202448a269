"""What of an ELF kernel is loaded where, and where it is entered. Pure: validates completely.

An ELF file is a kernel by one of two entries. *PVH*: a note names the 32-bit address; Linux since 4.21, Xen, GRUB and NetBSD
have it, as 64-bit and as 32-bit files. *Linux 64-bit*: x86-64 vmlinux of any age, and flat images linked to run where they
are loaded; nothing in the file says so, so that a program of user space is told from it by what only those have.

Source: Xen public/elfnote.h for the note.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from aiovmm.architecture import X86_64
from aiovmm.boot.elf import (
    PT_DYNAMIC,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    PT_TLS,
    ElfError,
    ElfFile,
    ProgramHeader,
    parse_headers,
)
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.runtime.dataclass import dataclass

__all__ = ["ElfImage", "ElfSegment", "parse"]

_NHDR = struct.Struct("<III")
_XEN_ELFNOTE_PHYS32_ENTRY = 18
_MAX_NOTES = 1 << 16  # bytes
_USER_SPACE = {PT_INTERP: "a dynamic linker", PT_DYNAMIC: "dynamic linking", PT_TLS: "thread-local storage"}


@dataclass(frozen=True)
class ElfSegment:
    """`file_size` bytes at file `offset` go to guest-physical `address`; the rest up to `memory_size` is zero."""

    offset: int
    file_size: int
    address: int
    memory_size: int

    @property
    def end(self) -> int:
        """The first physical address after it."""
        return self.address + self.memory_size

    def holds(self, address: int) -> bool:
        """Whether the file has the byte for `address`: code that is all zeros is none."""
        return self.address <= address < self.address + self.file_size


@dataclass(frozen=True)
class ElfImage:
    """Loadable segments and the physical addresses of two entries, 64-bit and PVH (32-bit): at least one is there."""

    segments: tuple[ElfSegment, ...]
    entry: int | None
    pvh_entry: int | None

    @property
    def end(self) -> int:
        """The first physical address after all segments."""
        return max(s.end for s in self.segments)

    @property
    def start(self) -> int:
        """The lowest address of a segment."""
        return min(s.address for s in self.segments)


def parse(file: FileWindow) -> ElfImage:
    """The kernel in `file`. Raises ElfError, with what is wrong with it and where."""
    try:
        elf = parse_headers(file, X86_64)
        loads = [h for h in elf.headers if h.kind == PT_LOAD and h.memory_size]
        segments = tuple(_segment(h, file.size) for h in loads)
        if not segments:
            raise ElfError("ELF file with nothing to load")
        pvh = _pvh_entry(file, elf, segments)
    except OutsideFile as exc:
        raise ElfError(str(exc)) from exc
    entry = _entry(elf, loads, segments, required=pvh is None)
    return ElfImage(segments, entry, pvh)


def _segment(header: ProgramHeader, size: int) -> ElfSegment:
    if header.file_size > header.memory_size or header.physical + header.memory_size >= 1 << 52:
        raise ElfError("an ELF segment with impossible sizes")
    if header.offset + header.file_size > size:
        raise OutsideFile(f"truncated: a segment ends at byte {header.offset + header.file_size} of a file of {size}")
    return ElfSegment(header.offset, header.file_size, header.physical, header.memory_size)


def _entry(elf: ElfFile, loads: list[ProgramHeader], segments: tuple[ElfSegment, ...], required: bool) -> int | None:
    """The physical address of the 64-bit entry; None where there is none. Raises ElfError if it is `required`."""
    problem = _no_entry(elf)
    if problem is None:
        entry = _physical(elf.entry, loads)
        if any(s.holds(entry) for s in segments):
            return entry
        problem = f"an ELF file whose entry point {entry:#x} lies in no loaded segment"
    if required:
        raise ElfError(problem)
    return None


def _no_entry(elf: ElfFile) -> str | None:
    """Why this cannot be entered by the 64-bit protocol, as far as the headers tell."""
    for header in elf.headers:
        if header.kind in _USER_SPACE:
            return f"a program or library of user space (it needs {_USER_SPACE[header.kind]}), not a kernel"
    if not elf.is_64bit:
        return "a 32-bit ELF file without a PVH entry (a note of Xen's, PHYS32_ENTRY), so it has no entry point for this machine"
    return None if elf.entry else "an ELF file without an entry point: neither a 64-bit one nor PVH's note"


def _physical(entry: int, loads: list[ProgramHeader]) -> int:
    """vmlinux names a physical entry; a linker that names the virtual one is translated by the segment it is in."""
    if any(h.physical <= entry < h.physical + h.memory_size for h in loads):
        return entry
    for header in loads:
        if header.virtual <= entry < header.virtual + header.memory_size:
            return entry - header.virtual + header.physical
    return entry


def _pvh_entry(file: FileWindow, elf: ElfFile, segments: tuple[ElfSegment, ...]) -> int | None:
    """PVH's entry if a note names one. Raises ElfError if it names a place where there is no code, and OutsideFile."""
    for header in elf.headers:
        if header.kind != PT_NOTE:
            continue
        notes = file.part(header.offset, header.file_size, "a note segment") if header.file_size <= _MAX_NOTES else b""
        for entry in _pvh_entries(notes):
            if entry >= 1 << 32 or not any(s.holds(entry) for s in segments):
                raise ElfError(f"an ELF file whose PVH entry {entry:#x} lies in no loaded segment")
            return entry
    return None


def _pvh_entries(notes: bytes) -> Iterator[int]:
    """Values of all XEN_ELFNOTE_PHYS32_ENTRY in one PT_NOTE segment (4-byte aligned notes, as all who write it have them)."""
    at = 0
    while at + _NHDR.size <= len(notes):
        name_size, desc_size, kind = _NHDR.unpack_from(notes, at)
        name = at + _NHDR.size
        desc = name + (name_size + 3 & ~3)
        at = desc + (desc_size + 3 & ~3)
        named = notes[name : name + name_size] == b"Xen\0"
        if kind == _XEN_ELFNOTE_PHYS32_ENTRY and named and desc_size in (4, 8) and desc + desc_size <= len(notes):
            yield int.from_bytes(notes[desc : desc + desc_size], "little")
