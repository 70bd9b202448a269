"""Arrays for native code are each their owner's alone, take memory only where they are filled, and give it back."""

from __future__ import annotations

import errno
import gc
import mmap
import subprocess
import sys
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.native import ffi, lib, owners
from aiovmm.native import room as rooms
from aiovmm.native.room import give_back, room

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(bool(lib.AVMM_SANITIZED), reason="there malloc has all of them, and checks their edges")


def resident(array: Any) -> int:
    """Bytes of it that take memory."""
    return int(lib.avmm_mem_resident(owners.address(array), -(-ffi.sizeof(array) // PAGE) * PAGE))


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 3 * PAGE, 16 * PAGE])
def test_what_is_not_filled_takes_no_memory_whoever_had_it_before(size: int) -> None:
    mine = room("uint8_t[]", size)
    ffi.memmove(mine, bytes(size), size)
    assert resident(mine) >= size
    other = room("uint8_t[]", size)  # so that its mapping stays
    address = owners.address(mine)
    del mine
    give_back()
    assert lib.avmm_mem_resident(address, -(-size // PAGE) * PAGE) == 0
    again = [room("uint8_t[]", size) for _ in range(rooms._PIECES - 1)]
    assert address in {owners.address(array) for array in again}, "it was lost"
    assert all(not resident(array) for array in again)
    assert owners.address(other) not in {owners.address(array) for array in again}


def test_a_mapping_that_nobody_has_a_piece_of_is_unmapped() -> None:
    arrays = [room("uint8_t[]", 16 * PAGE) for _ in range(2 * rooms._PIECES)]
    regions = {id(region) for region, _ in rooms._sizes[16 * PAGE]._lent.values()}
    assert len(regions) >= 2
    arrays.clear()
    give_back()
    assert not {id(piece[0]) for piece in rooms._sizes[16 * PAGE]._free} & regions


def test_a_pointer_that_is_kept_keeps_its_piece() -> None:
    array = room("struct iovec[]", 1024)
    view = ffi.buffer(array)
    view[:4] = b"mine"
    del array
    gc.collect()
    give_back()
    others = [room("struct iovec[]", 1024) for _ in range(3)]
    for other in others:
        ffi.buffer(other)[:4] = b"late"
    assert view[:4] == b"mine"


def test_pieces_that_end_while_others_are_given_back_are_not_lost() -> None:
    pieces, ended = rooms._sizes[2 * PAGE], threading.Event()

    def gives_back() -> None:
        while not ended.is_set():
            give_back()

    thread = threading.Thread(target=gives_back)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(300):
            arrays = [room("uint8_t[]", 2 * PAGE) for _ in range(20)]
            assert len({owners.address(array) for array in arrays}) == 20
            arrays.clear()
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    known = list(pieces._free) + list(pieces._lent.values())
    assert len(known) == len(set(known))
    assert len(known) == rooms._PIECES * len({id(region) for region, _ in known})


def test_arrays_that_are_garbage_in_a_cycle_end_nothing() -> None:
    """In a process of its own, which ended with a signal."""
    program = """
import gc
from aiovmm.native.room import room

class Thing: ...

gc.disable()
for _ in range(100):
    array, thing = room("uint64_t[]", 2048), Thing()
    thing.own, thing.array = thing, array
    array[5] = 7
    del thing, array
    gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_a_mapping_to_be_had_the_c_library_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's exits are to be taken to somewhere."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(rooms, "_sizes", {size: rooms._Pieces(size) for size in rooms._sizes})
    monkeypatch.setattr(mmap, "mmap", refused)
    array = room("uint8_t[]", 2 * PAGE)
    array[2 * PAGE - 1] = 7
    assert len(array) == 2 * PAGE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20 * PAGE)), max_size=60))
def test_pieces_never_overlap_and_hold_what_was_put(steps: list[tuple[bool, int]]) -> None:
    arrays: list[tuple[Any, int]] = []
    for number, (take, size) in enumerate(steps):
        if take or not arrays:
            array = room("uint8_t[]", size)
            assert len(array) == size
            array[0] = array[size - 1] = number
            arrays.append((array, number))
        else:
            arrays.pop(size % len(arrays))
            if size % 3 == 0:
                give_back()
        spans = sorted((owners.address(array), len(array)) for array, _ in arrays)
        assert all(at + length <= following for (at, length), (following, _) in pairwise(spans))
        assert all(array[0] == array[len(array) - 1] == mark for array, mark in arrays)
