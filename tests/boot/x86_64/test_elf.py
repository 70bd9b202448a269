"""ELF kernels by their headers alone: both classes, both entries, and every number at its limits."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiovmm.architecture import X86_64
from aiovmm.boot.elf import ElfError, is_static
from aiovmm.boot.window import FileWindow, OutsideFile
from aiovmm.boot.x86_64.elf_kernel import ElfImage, parse
from tests.boot.images import CODE, DYNAMIC, INTERP, KERNEL_ADDRESS, TLS, elf

LIMITS = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = st.sampled_from(LIMITS) | st.integers(0, 2**64 - 1)
SEEDS = {1: elf(elf_class=1, pvh=KERNEL_ADDRESS), 2: elf(pvh=KERNEL_ADDRESS)}
PVH_OFFSET = 0x1000 + len(CODE) + 20  # of the second note, which is PVH's


def fields(elf_class: int) -> list[tuple[int, int]]:
    """(offset, width in bytes) of every number in the file header, both program headers, and the notes."""
    word = 4 if elf_class == 1 else 8
    widths = [2, 2, 4, word, word, word, 4, *[2] * 6]
    headers = ([4] * 8 if elf_class == 1 else [4, 4, *[8] * 6]) * 2
    found, at = [], 16
    for width in widths + headers:
        found.append((at, width))
        at += width
    return found + [(PVH_OFFSET + 4 * i, 4) for i in range(3)] + [(PVH_OFFSET + 16, 4)]


def guarded(data: bytes) -> FileWindow:
    """The file as a kernel reads it, asked only for what it has: another offset is not an answer of os.pread's."""

    def read(offset: int, size: int) -> bytes:
        assert 0 <= offset <= len(data), f"read at {offset} of {len(data)}"
        assert 0 <= size <= len(data) - offset, f"read of {size} at {offset} of {len(data)}"
        return data[offset : offset + size]

    return FileWindow(read, len(data))


def consistent(image: ElfImage, size: int) -> None:
    """What load_into relies on."""
    for segment in image.segments:
        assert 0 <= segment.offset <= segment.offset + segment.file_size <= size
        assert 0 <= segment.file_size <= segment.memory_size
        assert segment.end <= 1 << 52
    entries = [e for e in (image.entry, image.pvh_entry) if e is not None]
    assert entries
    assert all(any(s.holds(e) for s in image.segments) for e in entries)
    assert image.pvh_entry is None or image.pvh_entry < 1 << 32


@given(
    st.sampled_from([1, 2]), st.dictionaries(st.integers(0, 40), NUMBERS, min_size=1, max_size=4), st.integers(0, 2**15)
)
@example(2, {22: 2**63}, 2**15).via("the note segment's offset")
@example(1, {1: 62}, 2**15)
def test_any_number_in_any_field(elf_class: int, changes: dict[int, int], keep: int) -> None:
    data = bytearray(SEEDS[elf_class])
    places = fields(elf_class)
    for field, number in changes.items():
        offset, width = places[field % len(places)]
        data[offset : offset + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
    for file in (bytes(data), bytes(data[:keep])):
        is_static(file, X86_64)
        try:
            image = parse(guarded(file))
        except ElfError:
            continue
        consistent(image, len(file))


@pytest.mark.parametrize("elf_class", SEEDS)
def test_every_field_at_every_limit(elf_class: int) -> None:
    for offset, width in fields(elf_class):
        for number in LIMITS:
            data = bytearray(SEEDS[elf_class])
            data[offset : offset + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
            try:
                consistent(parse(guarded(bytes(data))), len(data))
            except ElfError:
                continue


@given(NUMBERS | st.sampled_from([-1, -(2**63)]), NUMBERS | st.sampled_from([-1, -(2**63)]))
def test_a_window_reads_what_is_there_and_nothing_else(offset: int, size: int) -> None:
    file = guarded(bytes(1 << 12))
    if 0 <= offset <= offset + size <= 1 << 12 and size >= 0:
        assert len(file.part(offset, size, "it")) == size
    else:
        with pytest.raises(OutsideFile, match="it ends"):
            file.part(offset, size, "it")


def test_a_file_that_shrinks_under_the_reader() -> None:
    with pytest.raises(OutsideFile, match="has become shorter"):
        FileWindow(lambda offset, size: b"", 100).part(10, 20, "it")


def test_a_32bit_kernel_is_entered_by_pvh() -> None:
    image = parse(FileWindow.over(elf(elf_class=1, pvh=KERNEL_ADDRESS + 0x10)))
    assert (image.pvh_entry, image.entry) == (KERNEL_ADDRESS + 0x10, None)
    assert [(s.address, s.file_size, s.memory_size) for s in image.segments] == [
        (KERNEL_ADDRESS, len(CODE), len(CODE) + 0x3000)
    ]


def test_the_64bit_entry_is_kept_beside_pvhs() -> None:
    image = parse(FileWindow.over(elf(pvh=KERNEL_ADDRESS + 0x10)))
    assert (image.pvh_entry, image.entry) == (KERNEL_ADDRESS + 0x10, KERNEL_ADDRESS + 0x40)


NO_ENTRY = {
    "dynamic program": (elf(also=(INTERP,)), "user space"),
    "shared library": (elf(also=(DYNAMIC,), kind=3), "user space"),
    "static program": (elf(also=(TLS,)), "user space"),
    "32-bit program": (elf(elf_class=1), "32-bit ELF file without a PVH entry"),
    "no entry at all": (elf(entry=0), "without an entry point"),
    "entry in the zeros": (elf(entry=KERNEL_ADDRESS + len(CODE) + 8), "lies in no loaded segment"),
    "PVH entry elsewhere": (elf(pvh=0x42), "PVH entry 0x42 lies in no"),
    "PVH entry in the zeros": (elf(pvh=KERNEL_ADDRESS + len(CODE)), "PVH entry .* lies in no"),
}


@pytest.mark.parametrize("case", NO_ENTRY)
def test_what_has_no_entry_is_refused(case: str) -> None:
    data, message = NO_ENTRY[case]
    with pytest.raises(ElfError, match=message):
        parse(FileWindow.over(data))


@pytest.mark.parametrize("program", ["ls", "sh", "env"])
def test_a_program_of_the_host_is_no_kernel(program: str) -> None:
    path = shutil.which(program)
    assert path is not None
    with pytest.raises(ElfError, match="user space"):
        parse(FileWindow.over(Path(path).read_bytes()))


def test_a_note_by_another_name_names_no_entry() -> None:
    data = elf(pvh=KERNEL_ADDRESS).replace(
        struct.pack("<III4s", 4, 4, 18, b"Xen\0"), struct.pack("<III4s", 4, 4, 18, b"Xem\0")
    )
    assert parse(FileWindow.over(data)).pvh_entry is None


def test_is_static() -> None:
    assert is_static(elf(), X86_64)
    assert not is_static(elf(also=(INTERP,)), X86_64)
    assert not is_static(elf(elf_class=1), X86_64)
    assert not is_static(b"#!/bin/sh\n", X86_64)
