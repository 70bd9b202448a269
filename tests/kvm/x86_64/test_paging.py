"""What page tables tell of a guest's life, for all four kinds of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.kvm.x86_64.paging import Paging, has_user_pages
from aiovmm.memory import GuestMemory

PROTECTED, PAGED = 1, 1 << 31
PAE, LA57 = 1 << 5, 1 << 12
LMA = 1 << 10
P, U, PS = 1, 4, 1 << 7
RAM = [(0, 1 << 20)]

KINDS = {
    "4 levels": (Paging(PROTECTED | PAGED, 0x1000, PAE, LMA), 4, 8),
    "5 levels": (Paging(PROTECTED | PAGED, 0x1000, PAE | LA57, LMA), 5, 8),
    "PAE": (Paging(PROTECTED | PAGED, 0x1000, PAE, 0), 3, 8),
    "32-bit": (Paging(PROTECTED | PAGED, 0x1000, 0, 0), 2, 4),
}
LOWER = {"4 levels": 256, "5 levels": 256, "PAE": 3, "32-bit": 768}


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create(RAM)
    yield memory
    memory.close()


def tables(memory: GuestMemory, kind: str, flags: int, *, index: int = 1, stop: int = 1, last: int = 0) -> Paging:
    """One page under tables at 0x1000, 0x2000, ...: all entries have `flags`, that at level `stop` `last` as well."""
    paging, levels, width = KINDS[kind]
    for level in range(levels, stop - 1, -1):
        address = 0x1000 * (1 + levels - level)
        entry = address + 0x1000 | flags | (last if level == stop else 0)
        if kind == "PAE" and level == 3:
            entry &= ~U  # it has no such bit
        place = index if level == levels else 5
        memory.write(address + place * width, struct.pack("<Q" if width == 8 else "<I", entry))
    return paging


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2])
def test_a_page_of_user_space(kind: str, stop: int, memory: GuestMemory) -> None:
    paging = tables(memory, kind, P | U, stop=stop, last=PS if stop > 1 else 0)
    assert has_user_pages(memory, RAM, paging)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernels_own_pages(kind: str, memory: GuestMemory) -> None:
    assert not has_user_pages(memory, RAM, tables(memory, kind, P))


@pytest.mark.parametrize("kind", KINDS)
def test_user_pages_of_the_kernels_half_are_no_user_space(kind: str, memory: GuestMemory) -> None:
    """Linux's vsyscall page is there before init is."""
    assert not has_user_pages(memory, RAM, tables(memory, kind, P | U, index=LOWER[kind]))
    assert has_user_pages(memory, RAM, tables(memory, kind, P | U, index=LOWER[kind] - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_upper_level_alone_gives_ring_3_nothing(kind: str, memory: GuestMemory) -> None:
    """As a bootloader's identity map: tables with the bit set, pages without."""
    paging = tables(memory, kind, P | U)
    levels, width = KINDS[kind][1:]
    memory.write(0x1000 * levels + 5 * width, struct.pack("<I", P))
    assert not has_user_pages(memory, RAM, paging)


def test_no_paging_no_note_and_tables_in_no_ram(memory: GuestMemory) -> None:
    paging = tables(memory, "4 levels", P | U)
    assert not has_user_pages(memory, RAM, Paging())
    assert not has_user_pages(memory, RAM, Paging(PROTECTED, paging.cr3, paging.cr4, paging.efer))
    assert not has_user_pages(memory, [(0, 0x1800)], paging)


def test_tables_tied_in_knots_end(memory: GuestMemory) -> None:
    """256 entries that all lead back: 2 to the 32nd ways, and no page at the end of any within reach."""
    memory.write(0x1000, struct.pack("<512Q", *[0x1000 | P | U] * 512))
    assert has_user_pages(memory, RAM, KINDS["5 levels"][0])


@given(
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 2**64 - 1)), max_size=8),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, PAE, PAE | LA57]),
    st.sampled_from([0, LMA]),
)
def test_any_tables_anywhere(entries: list[tuple[int, int]], cr3: int, cr4: int, efer: int) -> None:
    memory = GuestMemory.create(RAM)
    for index, entry in entries:
        memory.write(0x1000 + 8 * index, struct.pack("<Q", entry))
    for address in (cr3, 0x1000):
        assert has_user_pages(memory, RAM, Paging(PROTECTED | PAGED, address, cr4, efer)) in (True, False)
    memory.close()
