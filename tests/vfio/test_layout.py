"""What of a BAR is mapped and what is trapped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiovmm.vfio.layout import Piece, lay_out

PAGE = 4096


def test_the_pages_of_the_msix_structures_are_trapped_but_for_what_is_ours() -> None:
    layout = lay_out(0x8000, [(0, 0x8000)], [Piece(0x3000, 0x80), Piece(0x4800, 8)])
    assert layout.mapped == (Piece(0, 0x3000), Piece(0x5000, 0x3000))
    assert layout.trapped == (Piece(0x3080, 0x1780), Piece(0x4808, 0x7F8))
    assert layout.ours == (Piece(0x3000, 0x80), Piece(0x4800, 8))


def test_a_bar_below_a_page_is_trapped() -> None:
    assert lay_out(0x100, [(0, 0x100)], ()).trapped == (Piece(0, 0x100),)


def test_what_the_kernel_does_not_let_be_mapped_is_trapped() -> None:
    layout = lay_out(0x4000, [(0, 0x1000), (0x3000, 0x1000)], ())
    assert layout.mapped == (Piece(0, 0x1000), Piece(0x3000, 0x1000))
    assert layout.trapped == (Piece(0x1000, 0x2000),)


sizes = st.sampled_from([16, 256, PAGE, 4 * PAGE, 16 * PAGE])


@given(sizes, st.data())
def test_every_byte_of_a_bar_is_answered_by_exactly_one(size: int, data: st.DataObject) -> None:
    # areas are disjoint, as the kernel gives them
    cuts = sorted(set(data.draw(st.lists(st.integers(0, size), max_size=6))))
    areas = [(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    start = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - start))
    layout = lay_out(size, areas, [Piece(start, length)])
    owners = [0] * size
    for piece in (*layout.mapped, *layout.trapped, *layout.ours):
        for n in range(piece.offset, piece.end):
            owners[n] += 1
    assert set(owners) == {1}
    for piece in layout.mapped:
        assert piece.offset % PAGE == piece.size % PAGE == 0
        assert any(a <= piece.offset and piece.end <= a + n for a, n in areas)
