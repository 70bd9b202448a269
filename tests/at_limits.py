"""Numbers of a file or message set to what is likely to be taken wrongly, wherever they stand: what a property that draws bytes
at random never meets (one of 2**64 is 2**63)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from hypothesis import strategies as st

__all__ = ["LIMITS", "NUMBERS", "Order", "everywhere", "several"]

LIMITS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (*LIMITS, -1, -(2**31), -(2**63), 2**64, 10**30)
"""The same where they are written in words, as in JSON."""
_WIDTHS = (1, 2, 4, 8)
Order = Literal["little", "big"]


def _put(data: bytearray, at: int, width: int, number: int, order: Order) -> None:
    data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)


def everywhere(good: bytes, *, orders: Sequence[Order] = ("little",), step: int = 1) -> Iterator[bytes]:
    """`good` with one number in it, of each width, at each place that is a multiple of `step`; each once."""
    seen = {good}
    for width in _WIDTHS:
        for at in range(0, len(good) - width + 1, step):
            for number in LIMITS:
                for order in orders:
                    data = bytearray(good)
                    _put(data, at, width, number, order)
                    if (one := bytes(data)) not in seen:
                        seen.add(one)
                        yield one


def several(good: bytes, *, order: Order = "little", most: int = 4) -> st.SearchStrategy[bytes]:
    """`good` with some numbers in it at once, that belong together in the header there."""

    def put(places: list[tuple[int, int, int]]) -> bytes:
        data = bytearray(good)
        for at, width, number in places:
            _put(data, min(at, len(good) - width), width, number, order)
        return bytes(data)

    numbers = st.sampled_from(LIMITS) | st.integers(0, 2**64 - 1)
    places = st.tuples(st.integers(0, len(good) - 1), st.sampled_from(_WIDTHS), numbers)
    return st.lists(places, min_size=1, max_size=most).map(put)
