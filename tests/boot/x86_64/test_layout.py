from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.boot.x86_64 import layout, ram_ranges
from aiovmm.boot.x86_64.e820 import RAM, memory_map
from aiovmm.errors import UsageError

SIZES = st.integers(512, 1 << 28).map(lambda pages: pages * 4096)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (2 << 20, [(0, 2 << 20)]),
        (3 << 30, [(0, 3 << 30)]),
        ((3 << 30) + 4096, [(0, 3 << 30), (1 << 32, 4096)]),
        (5 << 30, [(0, 3 << 30), (1 << 32, 2 << 30)]),
    ],
)
def test_ram_stops_at_the_pci_hole_and_resumes_at_4_gib(size: int, expected: list[tuple[int, int]]) -> None:
    assert ram_ranges(size) == expected


@pytest.mark.parametrize("size", [0, 4096, (64 << 20) + 1, -4096])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(UsageError, match="guest memory"):
        ram_ranges(size)


@given(SIZES)
def test_memory_map_offers_all_ram_but_the_pc_hole_once(size: int) -> None:
    entries = memory_map(ram_ranges(size))
    assert all(a.address + a.size <= b.address for a, b in itertools.pairwise(entries))
    assert sum(e.size for e in entries if e.type == RAM) == size - (layout.HIGH_RAM - layout.LOW_RAM_END)
    for entry in entries:
        if entry.type == RAM:
            end = entry.address + entry.size
            assert end <= layout.MMIO32 or entry.address >= layout.RAM_ABOVE_4G


@given(SIZES)
def test_64bit_bars_begin_above_ram_and_the_hole(size: int) -> None:
    end = layout.end_of_ram(ram_ranges(size))
    assert end >= layout.RAM_ABOVE_4G
    assert end >= max(gpa + length for gpa, length in ram_ranges(size))
