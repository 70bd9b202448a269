"""What answers where, when the guest programs BARs as it likes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.bus import Space
from aiovmm.errors import UsageError
from aiovmm.pci.aperture import Aperture, BarId, Placement
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.testing.pci import ECAM_BASE, MMIO32

PLAN = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]
A, B, C = BarId(1, 0), BarId(2, 0), BarId(3, 0)
BASE = MMIO32.base


def claim(aperture: Aperture, bar: BarId, base: int | None, size: int = 0x1000) -> list[Placement]:
    return aperture.claim(bar, Space.MMIO, base, size)


def test_a_bar_in_a_window_answers_and_moves() -> None:
    aperture = Aperture(PLAN)
    assert claim(aperture, A, BASE) == [Placement(A, BASE)]
    assert claim(aperture, A, BASE) == []
    assert claim(aperture, A, BASE + 0x1000) == [Placement(A, None), Placement(A, BASE + 0x1000)]
    assert claim(aperture, A, None) == [Placement(A, None)]


@pytest.mark.parametrize("base", [0, 0x100000, 0xE8000000, 0xFEC00000, 0xFEE00000, 0xFFFFF000, 1 << 50])
def test_a_bar_over_ram_ecam_or_chips_answers_nowhere(base: int) -> None:
    assert claim(Aperture(PLAN), A, base) == []


def test_a_bar_across_the_end_of_a_window_answers_nowhere() -> None:
    assert claim(Aperture(PLAN), A, MMIO32.end - 0x1000, 0x2000) == []


def test_the_first_comer_keeps_the_addresses_and_the_other_gets_them_when_it_goes() -> None:
    aperture = Aperture(PLAN)
    claim(aperture, A, BASE, 0x4000)
    assert claim(aperture, B, BASE + 0x3000) == []
    assert claim(aperture, C, BASE + 0x3000) == []
    assert claim(aperture, A, None, 0x4000) == [Placement(A, None), Placement(B, BASE + 0x3000)]
    assert claim(aperture, B, BASE + 0x8000) == [
        Placement(B, None),
        Placement(C, BASE + 0x3000),
        Placement(B, BASE + 0x8000),
    ]


def test_reserved_addresses_are_neither_given_nor_decoded() -> None:
    aperture = Aperture(PLAN)
    aperture.reserve(BASE, 0x10000)
    assert claim(aperture, A, BASE + 0xF000) == []
    assert aperture.allocate(A, Space.MMIO, 0x8000, 0x8000, wide=False) == BASE + 0x10000


def test_addresses_given_out_are_aligned_and_disjoint_and_come_back() -> None:
    aperture = Aperture(PLAN)
    assert aperture.allocate(A, Space.MMIO, 0x1000, 0x1000, wide=True) == PLAN.mmio64.base
    assert aperture.allocate(B, Space.MMIO, 0x10000, 0x10000, wide=True) == PLAN.mmio64.base + 0x10000
    assert aperture.allocate(C, Space.MMIO, 0x1000, 0x1000, wide=True) == PLAN.mmio64.base + 0x1000
    aperture.forget(A)
    assert aperture.allocate(BarId(4, 0), Space.MMIO, 0x1000, 0x1000, wide=True) == PLAN.mmio64.base


def test_a_full_window_is_an_error_of_the_caller() -> None:
    aperture = Aperture(PLAN)
    with pytest.raises(UsageError, match="no room"):
        aperture.allocate(A, Space.MMIO, 1 << 30, 1 << 30, wide=False)
    with pytest.raises(UsageError, match="no window for I/O"):
        aperture.allocate(A, Space.PIO, 16, 16, wide=False)


def test_io_bars_have_a_window_of_their_own() -> None:
    aperture = Aperture(SegmentPlan(0, PLAN.ecam_base, PLAN.mmio32, PLAN.mmio64, io=Window(0xC000, 0x1000)))
    base = aperture.allocate(A, Space.PIO, 0x40, 0x40, wide=False)
    assert aperture.claim(A, Space.PIO, base, 0x40) == [Placement(A, 0xC000)]
    assert aperture.claim(B, Space.PIO, 0x3F8, 8) == [], "COM1 is not the bridge's"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.one_of(st.none(), st.integers(0, 20)),
            st.sampled_from([0x1000, 0x2000, 0x8000]),
        ),
        max_size=40,
    )
)
def test_what_answers_never_overlaps_and_every_claim_is_served_if_it_can_be(
    steps: list[tuple[int, int | None, int]],
) -> None:
    aperture = Aperture(PLAN)
    wanted: dict[BarId, tuple[int, int]] = {}
    active: dict[BarId, int] = {}
    for slot, page, size in steps:
        bar = BarId(slot, 0)
        base = None if page is None else BASE + 0x1000 * page
        for change in aperture.claim(bar, Space.MMIO, base, size):
            if change.base is None:
                del active[change.owner]
            else:
                assert change.owner not in active
                active[change.owner] = change.base
        wanted.pop(bar, None)
        if base is not None:
            wanted[bar] = (base, size)
        spans = [(wanted[b][0], sum(wanted[b])) for b in active]
        assert all(active[b] == wanted[b][0] for b in active)
        assert all(a is b or a[1] <= b[0] or b[1] <= a[0] for a in spans for b in spans)
        for name, (start, length) in wanted.items():
            assert name in active or any(start < e and s < start + length for s, e in spans)
