"""ioctls that are made together, up to the first that fails."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator

import pytest

from aiovmm.kvm.ioctl import Calls
from aiovmm.native import ffi

UNKNOWN = 0x7FFF_FFFF


@pytest.fixture
def pipe() -> Iterator[int]:
    """A pipe's end that has three bytes."""
    end, other = os.pipe()
    os.write(other, b"abc")
    yield end
    os.close(end)
    os.close(other)


def test_all_are_made_for_any_number_of_descriptors(pipe: int) -> None:
    counts = [ffi.new("int *") for _ in range(2)]
    calls = Calls([(termios.FIONREAD, count, 0) for count in counts])
    for left in (3, 2, 1):
        assert calls.make(pipe)
        assert [count[0] for count in counts] == [left, left]
        os.read(pipe, 1)


@pytest.mark.parametrize("failing", [(UNKNOWN, 0), (termios.FIONREAD, 1)], ids=["an error", "less than is wanted"])
def test_none_is_made_after_one_that_fails(pipe: int, failing: tuple[int, int]) -> None:
    request, least = failing
    counts = [ffi.new("int *") for _ in range(3)]
    calls = Calls([(termios.FIONREAD, counts[0], 0), (request, counts[1], least), (termios.FIONREAD, counts[2], 0)])
    assert not calls.make(pipe)
    assert (counts[0][0], counts[2][0]) == (3, 0)


def test_arguments_live_as_long_as_the_calls(pipe: int) -> None:
    calls = Calls([(termios.FIONREAD, ffi.new("int *"), 0) for _ in range(50)])
    filler = [ffi.new("int *", 7) for _ in range(500)]
    assert calls.make(pipe)
    assert all(one[0] == 7 for one in filler), "nobody else's memory was written to"
