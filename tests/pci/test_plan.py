"""Segments share the address space without overlap."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import UsageError
from aiovmm.pci.plan import Window, plan_segments
from aiovmm.testing.pci import ECAM_BASE, MMIO32

GIB = 1 << 30


def test_one_segment_has_everything() -> None:
    (plan,) = plan_segments(1, ECAM_BASE, MMIO32, Window(4 * GIB, 1 << 40))
    assert (plan.number, plan.ecam_base, plan.ecam_size, plan.bus_end) == (0, 0xE8000000, 1 << 20, 0)
    assert plan.mmio32 == MMIO32
    assert plan.mmio64 == Window(4 * GIB, 1 << 40)
    assert MMIO32.end == plan.ecam_base


@given(st.integers(1, 256), st.integers(4 * GIB, 1 << 38), st.integers(1 << 30, 1 << 46))
def test_windows_and_ecams_never_overlap(count: int, base: int, size: int) -> None:
    mmio64 = Window(base & ~0xFFF, size & ~0xFFF)
    plans = plan_segments(count, ECAM_BASE, MMIO32, mmio64)
    assert [p.number for p in plans] == list(range(count))
    for kind in ("mmio32", "mmio64"):
        shares = [getattr(p, kind) for p in plans]
        whole = MMIO32 if kind == "mmio32" else mmio64
        assert all(whole.holds(s.base, s.size) and s.size >= 1 << 20 and not s.base % (1 << 20) for s in shares)
        assert all(a.end <= b.base for a, b in itertools.pairwise(shares))
    assert all(b.ecam_base - a.ecam_base == 1 << 20 for a, b in itertools.pairwise(plans))
    assert plans[-1].ecam_base + plans[-1].ecam_size <= 0xF8000000


def test_the_64_bit_window_starts_aligned_after_odd_ram() -> None:
    plans = plan_segments(2, ECAM_BASE, MMIO32, Window(4 * GIB + 0x1234000, 1 << 40))
    assert plans[0].mmio64.base == 8 * GIB
    assert plans[1].mmio64.base % (4 * GIB) == 0


@pytest.mark.parametrize("count", [0, 257, -1])
def test_segment_counts_are_bounded(count: int) -> None:
    with pytest.raises(UsageError, match="PCI segments"):
        plan_segments(count, ECAM_BASE, MMIO32, Window(4 * GIB, 1 << 40))


def test_too_small_a_window_is_refused() -> None:
    with pytest.raises(UsageError, match="too few"):
        plan_segments(4, ECAM_BASE, MMIO32, Window(4 * GIB, 1 << 20))


shares = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=16)


@given(shares, st.integers(4 * GIB, 1 << 38))
def test_a_segment_has_as_many_shares_as_it_weighs(weights: list[tuple[int, int]], base: int) -> None:
    mmio64 = Window(base & ~0xFFF, 1 << 42)
    plans = plan_segments(len(weights), ECAM_BASE, MMIO32, mmio64, weights)
    for kind, whole, which in (("mmio32", MMIO32, 0), ("mmio64", mmio64, 1)):
        windows = [getattr(p, kind) for p in plans]
        assert all(whole.holds(w.base, w.size) for w in windows)
        assert all(a.end == b.base for a, b in itertools.pairwise(windows))
        assert len({w.size // weight[which] for w, weight in zip(windows, weights, strict=True)}) == 1


def test_equal_weights_are_none() -> None:
    window = Window(4 * GIB, 1 << 40)
    assert plan_segments(3, ECAM_BASE, MMIO32, window, [(1, 1)] * 3) == plan_segments(3, ECAM_BASE, MMIO32, window)


def test_more_shares_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(UsageError, match="too few for 1024 shares"):
        plan_segments(2, ECAM_BASE, MMIO32, Window(4 * GIB, 1 << 40), [(512, 1), (512, 1)])
