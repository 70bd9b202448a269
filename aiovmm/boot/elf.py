"""The headers of an ELF file, 32-bit or 64-bit, little-endian, validated completely. Pure.

Source: System V ABI (gABI), chapters 4 and 5.
"""

from __future__ import annotations

import struct

from aiovmm.architecture import Architecture
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.runtime.dataclass import dataclass

__all__ = ["ELF_MAGIC", "ElfError", "ElfFile", "ProgramHeader", "is_static", "machine_name", "parse_headers"]

ELF_MAGIC = b"\x7fELF"
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
_ELFCLASS32, _ELFCLASS64, _ELFDATA2LSB = 1, 2, 1
_ET_EXEC, _ET_DYN = 2, 3
_MAX_SEGMENTS = 64
_MACHINES = {3: "32-bit x86", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "s390", 40: "32-bit ARM"} | {
    62: "x86-64",
    183: "arm64",
    243: "RISC-V",
    258: "LoongArch",
}


class ElfError(ValueError):
    """The file is not an ELF file that the machine can run; the message says why."""


@dataclass(frozen=True)
class _Class:
    """How one of the two classes lays its headers out; `order` are the places of ProgramHeader's fields."""

    file_header: struct.Struct
    program_header: struct.Struct
    order: tuple[int, ...]


_CLASSES = {
    _ELFCLASS32: _Class(struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<8I"), (0, 1, 2, 3, 4, 5, 7)),
    _ELFCLASS64: _Class(struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), (0, 2, 3, 4, 5, 6, 7)),
}


@dataclass(frozen=True)
class ProgramHeader:
    """One segment: its PT_* `kind`, where it is in the file, and where in memory. Sizes in bytes; nothing is checked yet."""

    kind: int
    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int
    align: int


@dataclass(frozen=True)
class ElfFile:
    """An executable's `entry` (as the linker wrote it; 0: none), its segments, and whether it is of the 64-bit class."""

    is_64bit: bool
    entry: int
    headers: tuple[ProgramHeader, ...]


def machine_name(machine: int) -> str:
    """A name for an ELF e_machine value."""
    return _MACHINES.get(machine, f"machine number {machine}")


def is_static(data: bytes, runs: Architecture) -> bool:
    """Is `data` a 64-bit program for `runs` that needs no dynamic linker (no PT_INTERP)?"""
    try:
        file = parse_headers(FileWindow.over(data), runs)
    except (ElfError, OutsideFile):
        return False
    return file.is_64bit and all(h.kind != PT_INTERP for h in file.headers)


def parse_headers(file: FileWindow, runs: Architecture) -> ElfFile:
    """The headers of an executable for `runs`, or its 32-bit kin. Raises ElfError and OutsideFile."""
    layout = _class_of(file, runs)
    size = layout.file_header.size
    fields = layout.file_header.unpack(file.part(0, size, "the ELF header"))
    if fields[1] not in (_ET_EXEC, _ET_DYN):
        raise ElfError("an ELF file that is not an executable (an object file, a module or a core dump)")
    entry, phoff, phentsize, phnum = fields[4], fields[5], fields[9], fields[10]
    if phnum == 0:
        raise ElfError("ELF file without program headers: an object file, not a linked kernel")
    if phnum > _MAX_SEGMENTS or phentsize != layout.program_header.size:
        raise ElfError(f"ELF file with {phnum} program headers of {phentsize} bytes")
    table = file.part(phoff, phnum * phentsize, "the table of ELF program headers")
    rows = layout.program_header.iter_unpack(table)
    headers = tuple(ProgramHeader(*(row[i] for i in layout.order)) for row in rows)
    return ElfFile(layout is _CLASSES[_ELFCLASS64], entry, headers)


def _class_of(file: FileWindow, runs: Architecture) -> _Class:
    ident = file.part(0, min(file.size, 20), "the ELF header")
    if ident[:4] != ELF_MAGIC:
        raise ElfError("not an ELF file")
    if len(ident) < 20:
        raise OutsideFile("truncated: shorter than an ELF header")
    little = ident[5] == _ELFDATA2LSB
    machine = int.from_bytes(ident[18:20], "little" if little else "big")
    layout = _CLASSES.get(ident[4])
    if layout is None or not little or machine != runs.elf.get(ident[4]):
        bits = "64" if ident[4] == _ELFCLASS64 else "32"
        raise ElfError(f"a {bits}-bit ELF file for {machine_name(machine)}; this machine runs {runs.title} kernels")
    return layout
