"""Guest memory: what it gives, what it refuses, and that running out of it is an error and not the end of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.errors import GuestFault, HostError, UsageError
from aiovmm.memory import PAGE_SIZE, GuestMemory

HUGE = 2 << 20
LOW, HIGH = (0, 4 * PAGE_SIZE), (1 << 32, 4 * PAGE_SIZE)
POOL = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([LOW, HIGH])
    yield memory
    memory.close()


def huge_pages(field: str) -> int:
    """A figure of /proc/meminfo: HugePages_Free or HugePages_Total."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def test_what_is_written_is_read_and_is_in_the_file(memory: GuestMemory) -> None:
    memory.write(HIGH[0] + 5, b"hello")
    assert memory.read(HIGH[0] + 5, 5) == b"hello"
    region = memory.regions[1]
    assert os.pread(region.fd, 5, region.offset + 5) == b"hello"
    memory.slice(0, 3)[:] = b"abc"
    assert memory.read(0, 3) == b"abc"


@given(
    address=st.integers(-8, 6 * PAGE_SIZE) | st.integers((1 << 32) - 8, (1 << 32) + 6 * PAGE_SIZE),
    size=st.integers(-1, 9000),
)
def test_nothing_outside_is_ever_reached(address: int, size: int) -> None:
    memory = GuestMemory.create([LOW, HIGH])
    inside = size >= 0 and any(gpa <= address and address + size <= gpa + n for gpa, n in (LOW, HIGH))
    if inside:
        assert len(memory.slice(address, size)) == size
    else:
        with pytest.raises(GuestFault):
            memory.slice(address, size)
        with pytest.raises(GuestFault):
            memory.host_address(address, size)
    memory.close()


def test_a_view_outlives_its_region(memory: GuestMemory) -> None:
    view = memory.slice(0, 4)
    view[:] = b"kept"
    memory.close()
    memory.close()
    assert bytes(view) == b"kept"
    with pytest.raises(GuestFault):
        memory.read(0, 1)


@pytest.mark.parametrize("bad", [(1, PAGE_SIZE), (0, 100), (0, 0), (-PAGE_SIZE, PAGE_SIZE)])
def test_regions_are_whole_pages(bad: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="page-aligned"):
        GuestMemory.create([bad])


def test_regions_do_not_overlap(memory: GuestMemory) -> None:
    region = memory.regions[0]
    with pytest.raises(UsageError, match="overlaps"):
        memory.map_fd(3 * PAGE_SIZE, 2 * PAGE_SIZE, region.fd)


def test_read_only_regions_are_not_written(memory: GuestMemory) -> None:
    source = memory.regions[0]
    memory.write(0, b"constant")
    copy = memory.map_fd(1 << 20, PAGE_SIZE, source.fd, readonly=True)
    assert memory.read(1 << 20, 8) == b"constant"
    with pytest.raises(GuestFault):
        memory.write(1 << 20, b"x")
    memory.unmap(copy)


def test_more_huge_pages_than_there_are_is_an_error_before_the_guest_touches_one() -> None:
    pages = huge_pages("HugePages_Free") + 1
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="nr_hugepages"):
        GuestMemory.create([(0, pages * HUGE)], hugepages=True)
    assert set(os.listdir("/proc/self/fd")) == before


def test_huge_pages_that_are_promised_are_there() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may reserve huge pages")
    reserved = int(POOL.read_text())
    POOL.write_text(str(reserved + 2))
    try:
        if huge_pages("HugePages_Free") < 2:
            pytest.skip("the host's kernel has no two huge pages to spare")
        memory = GuestMemory.create([(0, 2 * HUGE)], hugepages=True)
        memory.write(2 * HUGE - 1, b"x")
        memory.write(0, b"x")
        memory.close()
    finally:
        POOL.write_text(str(reserved))
