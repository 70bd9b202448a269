"""How a BAR of a host device is put before a guest: what is mapped, what is trapped, where MSI-X is ours. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["BarLayout", "Piece", "lay_out"]

_PAGE = 4096


@dataclass(frozen=True, order=True)
class Piece:
    """Bytes [offset, offset + size) of a BAR."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.size


@dataclass(frozen=True)
class BarLayout:
    """`mapped` in whole pages; `trapped` the rest, without what is `ours`."""

    mapped: tuple[Piece, ...]
    trapped: tuple[Piece, ...]
    ours: tuple[Piece, ...]


def lay_out(size: int, areas: Sequence[tuple[int, int]], ours: Iterable[Piece]) -> BarLayout:
    """A BAR of `size` bytes whose `areas` (offset, size) the kernel lets be mapped, and in which `ours` is emulated.

    Pages that hold anything of ours are trapped, and so are BARs below a page: a guest may place them beside others.
    """
    ours = tuple(sorted(ours))
    pages = [Piece(p.offset & -_PAGE, (-(-p.end // _PAGE) * _PAGE) - (p.offset & -_PAGE)) for p in ours]
    mapped: list[Piece] = []
    for offset, length in areas if size >= _PAGE else ():
        start, end = -(-offset // _PAGE) * _PAGE, min(offset + length, size) & -_PAGE
        if start < end:
            mapped += _without([Piece(start, end - start)], pages)
    mapped.sort()
    return BarLayout(tuple(mapped), tuple(_without([Piece(0, size)], [*mapped, *ours])), ours)


def _without(pieces: list[Piece], holes: Iterable[Piece]) -> list[Piece]:
    """`pieces` less `holes`."""
    for hole in holes:
        left: list[Piece] = []
        for piece in pieces:
            for start, end in ((piece.offset, min(hole.offset, piece.end)), (max(hole.end, piece.offset), piece.end)):
                if start < end:
                    left.append(Piece(start, end - start))
        pieces = left
    return pieces
