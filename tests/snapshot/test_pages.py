"""Which pages of memory are kept, and that a file of them has what the memory had."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.memory import Backing, GuestMemory
from aiovmm.native import ffi, lib, owners
from aiovmm.snapshot.base import Base, base_of
from aiovmm.snapshot.pages import extents, keep, sum_up

PAGE = 4096
RANGES = [(0, 600 * PAGE), (1 << 32, 40 * PAGE)]
SIZE = 640 * PAGE
WRITES = st.lists(st.tuples(st.integers(0, 639), st.integers(0, PAGE - 8), st.integers(0, 255)), max_size=40)


def place(page: int) -> int:
    return page * PAGE if page < 600 else (1 << 32) + (page - 600) * PAGE


def write(memory: GuestMemory, writes: list[tuple[int, int, int]], expected: bytearray) -> None:
    for page, at, value in writes:
        memory.write(place(page) + at, bytes([value]) * 8)
        expected[page * PAGE + at : page * PAGE + at + 8] = bytes([value]) * 8


def new_file() -> int:
    fd = os.memfd_create("out")
    os.ftruncate(fd, SIZE)
    return fd


@pytest.mark.parametrize("shared", [False, True])
@given(WRITES)
def test_a_file_has_what_the_memory_had(shared: bool, writes: list[tuple[int, int, int]]) -> None:
    expected, out = bytearray(SIZE), new_file()
    memory = GuestMemory.create(RANGES, shared=shared)
    write(memory, writes, expected)
    kept = keep(memory, out)
    assert os.pread(out, SIZE, 0) == expected
    full = [n for n in range(640) if any(expected[n * PAGE : (n + 1) * PAGE])]
    assert kept.pages == len(full)
    assert sum(size for _, size in extents(out, 0, SIZE)) == len(full) * PAGE, "the rest are holes"
    assert sum_up(memory) == kept
    memory.close()
    os.close(out)


@given(WRITES, WRITES, WRITES)
def test_a_child_of_a_child_has_what_it_had(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]], third: list[tuple[int, int, int]]
) -> None:
    expected = bytearray(SIZE)
    memory = GuestMemory.create(RANGES, shared=False)
    for writes in (first, second, third):
        write(memory, writes, expected)
        base = base_of(memory)
        memory.close()
        memory = base.map(RANGES)
        base.release()
        for number in range(640):
            assert memory.read(place(number), PAGE) == expected[number * PAGE : (number + 1) * PAGE]
    memory.close()


def test_what_a_child_writes_nobody_else_sees() -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    memory.write(0, b"parent")
    base = base_of(memory)
    memory.close()
    one, other = base.map(RANGES), base.map(RANGES, prefault=True)
    one.write(0, b"child!")
    one.write(PAGE, b"more")
    assert (other.read(0, 6), other.read(PAGE, 4)) == (b"parent", bytes(4))
    base.release()
    fd = base.fd
    one.close()
    os.fstat(fd)
    other.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_pages_are_given_back_as_they_are_copied() -> None:
    memory = GuestMemory.create(RANGES, shared=False, thp=False)
    for page in range(640):
        memory.write(place(page), b"x")
    (first, last) = memory.regions
    assert lib.avmm_mem_resident(first.host, first.size) == 600 * PAGE
    base = base_of(memory)
    assert lib.avmm_mem_resident(first.host, first.size) + lib.avmm_mem_resident(last.host, last.size) == 0
    memory.close()
    base.release()


def test_a_base_of_shared_memory_is_not_copied() -> None:
    memory = GuestMemory.create(RANGES, shared=True)
    memory.write(0, b"there")
    base = base_of(memory)
    assert os.fstat(base.fd).st_ino == os.fstat(memory.regions[0].fd).st_ino
    memory.close()
    child = base.map(RANGES)
    assert child.read(0, 5) == b"there"
    child.close()
    base.release()


def test_a_base_of_shared_memory_in_several_files_has_all_of_it() -> None:
    """Zones, and modules that came later."""
    memory = GuestMemory()
    for place, size in RANGES:
        memory.add_ram([(place, size)], Backing())
        memory.write(place, b"at %d" % place)
    base = base_of(memory)
    memory.close()
    child = base.map(RANGES)
    for place, _ in RANGES:
        assert child.read(place, 16).rstrip(b"\0") == b"at %d" % place
    child.close()
    base.release()


def test_the_sum_tells_places_apart() -> None:
    sums = set()
    for page in (0, 1, 599, 600, 639):
        memory = GuestMemory.create(RANGES, shared=False)
        memory.write(place(page), b"x")
        sums.add(sum_up(memory).sum)
        memory.close()
    assert len(sums) == 5
    memory = GuestMemory.create(RANGES, shared=False)
    assert sum_up(memory).sum == 0
    memory.close()


def test_a_copied_base_cannot_be_written() -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    base: Base = base_of(memory)
    memory.close()
    with pytest.raises(OSError, match="not permitted"):
        os.write(base.fd, b"x")
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(base.fd, PAGE)
    base.release()


def test_a_file_that_does_not_tell_where_it_has_data_is_looked_at_whole() -> None:
    """Its mapping has data that nobody has touched: an error in asking is not a hole."""
    file, out = os.memfd_create("file"), new_file()
    os.ftruncate(file, 16 * PAGE)
    os.pwrite(file, b"data", 3 * PAGE)
    mapped = mmap.mmap(file, 16 * PAGE, flags=mmap.MAP_PRIVATE)
    silent = os.pipe()
    view = owners.view(mapped)
    for fd in (silent[0], file):
        kept = ffi.new("struct avmm_kept *")
        piece = {"host": owners.address(view), "size": 16 * PAGE, "data_fd": fd}
        assert lib.avmm_pages_keep(ffi.new("struct avmm_piece *", piece), out, 0, kept) == 0
        assert kept.pages == 1
    assert os.pread(out, SIZE, 0) == (bytes(3 * PAGE) + b"data").ljust(SIZE, b"\0")
    for fd in (file, out, *silent):
        os.close(fd)
