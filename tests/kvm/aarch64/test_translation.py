"""The walk through a guest's tables, against tables that were made here for what is to be found."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.kvm.aarch64.translation import Translation

GRANULES = {12: (0, 2), 14: (2, 1), 16: (1, 3)}  # TG0, TG1
ATTRIBUTES = 0xFFE0_0000_0000_0F7C  # of an entry, which say nothing of where it leads


@dataclass
class Tables:
    """Of one granule, by level: `levels` have the bits of an address that each takes, the first one first."""

    page: int
    size: int
    entries: dict[int, int] = field(default_factory=dict)
    read: list[int] = field(default_factory=list)

    @property
    def shifts(self) -> list[int]:
        """What an address is shifted by for each level's index."""
        shifts = [self.page]
        while shifts[0] + self.page - 3 < self.size:
            shifts.insert(0, shifts[0] + self.page - 3)
        return shifts

    def map(self, address: int, leads_to: int, depth: int) -> int:
        """With an entry at the `depth`th level that leads there; the base."""
        table = base = 1 << 40
        for shift in self.shifts[:depth]:
            following = table + (1 << 20)
            self.entries[self._place(table, address, shift)] = following | ATTRIBUTES | 3
            table = following
        kind = 3 if depth == len(self.shifts) - 1 else 1
        self.entries[self._place(table, address, self.shifts[depth])] = leads_to | ATTRIBUTES | kind
        return base

    def _place(self, table: int, address: int, shift: int) -> int:
        above = self.page - 3 if shift != self.shifts[0] else self.size - shift
        return table + 8 * (address >> shift & (1 << above) - 1)

    def __call__(self, place: int) -> int:
        self.read.append(place)
        return self.entries.get(place, 0)


def control(page: int, size: int, upper: bool) -> int:
    """TCR_EL1 for one half; the other is off."""
    tg = GRANULES[page][upper]
    return (64 - size) << 16 | tg << 30 | 1 << 7 if upper else 64 - size | tg << 14 | 1 << 23


@st.composite
def mapped(draw: st.DrawFn) -> tuple[Translation, Tables, int, int]:
    page = draw(st.sampled_from(sorted(GRANULES)))
    tables = Tables(page, draw(st.integers(25, 52)))
    upper = draw(st.booleans())
    address = draw(st.integers(0, (1 << tables.size) - 1))
    depth = draw(st.integers(0, len(tables.shifts) - 1))
    shift = tables.shifts[depth]
    leads_to = draw(st.integers(0, (1 << 48) - 1)) & -(1 << shift)
    base = tables.map(address, leads_to, depth) | draw(st.sampled_from([0, 1, 0xABCD << 48]))
    bases = (0, base) if upper else (base, 0)
    whole = address | -1 << tables.size & (1 << 64) - 1 if upper else address
    return (
        Translation(control(page, tables.size, upper), bases),
        tables,
        whole & (1 << 64) - 1 if upper or not address >> 55 & 1 else address,
        leads_to | address & (1 << shift) - 1,
    )


@given(mapped())
def test_it_finds_what_was_mapped(case: tuple[Translation, Tables, int, int]) -> None:
    translation, tables, address, expected = case
    assert translation.physical(address, tables) == expected


@given(mapped(), st.data())
def test_where_an_entry_is_none_there_is_nothing(
    case: tuple[Translation, Tables, int, int], data: st.DataObject
) -> None:
    translation, tables, address, _ = case
    place = data.draw(st.sampled_from(sorted(tables.entries)))
    tables.entries[place] &= ~1
    assert translation.physical(address, tables) is None
    assert tables.read[-1] == place, "and does not look further"


@given(mapped())
def test_the_other_half_is_off(case: tuple[Translation, Tables, int, int]) -> None:
    translation, tables, address, _ = case
    assert translation.physical(address ^ (1 << 64) - 1, tables) is None
    assert not tables.read


@given(
    st.integers(0, (1 << 64) - 1),
    st.tuples(*[st.integers(0, (1 << 64) - 1)] * 2),
    st.integers(-4, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
def test_it_ends_whatever_registers_and_memory_hold(
    register: int, bases: tuple[int, int], address: int, memory: int
) -> None:
    read: list[int] = []

    def anything(place: int) -> int:
        read.append(place)
        return memory

    found = Translation(register, bases).physical(address, anything)
    assert len(read) <= 7
    assert found is None or 0 <= found < 1 << 64


@pytest.mark.parametrize("page", sorted(GRANULES))
def test_a_page_that_is_no_page_is_reserved(page: int) -> None:
    tables = Tables(page, 39)
    base = tables.map(0x1234_5000, 0, len(tables.shifts) - 1)
    last = max(tables.entries, key=lambda place: place)
    tables.entries[last] &= ~2
    assert Translation(control(page, 39, False), (base, 0)).physical(0x1234_5000, tables) is None


def test_without_tables_an_address_is_itself() -> None:
    assert Translation(0, (0, 0), on=False).physical(0x4001_0000, lambda _: pytest.fail("it has none")) == 0x4001_0000
