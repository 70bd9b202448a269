"""Guest memory: what it gives, what it refuses, and that running out of it is an error and not the end of the process."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.config import MemoryConfig
from aiovmm.errors import GuestFault, HostError, StateError, UsageError
from aiovmm.memory import PAGE_SIZE, GuestMemory, trimming
from aiovmm.native import ffi
from aiovmm.native.mapping import GuestMapping
from aiovmm.runtime import crew

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


@pytest.fixture(params=[True, False], ids=["shared", "private"])
def either(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    memory = GuestMemory.create([LOW, HIGH], shared=request.param)
    yield memory
    memory.close()


def test_what_is_written_is_read(either: GuestMemory) -> None:
    either.write(HIGH[0] + 5, b"hello")
    assert either.read(HIGH[0] + 5, 5) == b"hello"
    either.slice(0, 3)[:] = b"abc"
    assert either.read(0, 3) == b"abc"
    assert either.read(PAGE_SIZE, 8) == bytes(8)
    address = either.host_address(0, 3)
    assert bytes(ffi.buffer(ffi.cast("char *", address), 3)) == b"abc"


def test_shared_memory_is_in_its_file(memory: GuestMemory) -> None:
    memory.write(HIGH[0] + 5, b"hello")
    region = memory.regions[1]
    assert region.shared
    assert os.pread(region.fd, 5, region.offset + 5) == b"hello"


def flags_of(address: int) -> set[str]:
    """What /proc/self/smaps says of the mapping that has this address (proc(5), VmFlags)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(text, 16) for text in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("thp", [True, False])
def test_private_memory_lies_so_that_huge_pages_fit_and_no_child_process_has_it(thp: bool) -> None:
    memory = GuestMemory.create([(0, 4 * HUGE), (1 << 32, HUGE)], shared=False, thp=thp)
    for region in memory.regions:
        assert (region.host - region.gpa) % HUGE == 0
        assert (region.fd, region.shared) == (-1, False)
        flags = flags_of(region.host)
        assert "dc" in flags  # not copied by fork
        assert ("hg" in flags, "nh" in flags) in ((thp, not thp), (False, False))  # a kernel may know no huge pages
    memory.close()


def test_small_guests_have_no_huge_pages_unless_they_are_to() -> None:
    mib = 1 << 20
    assert not MemoryConfig(63 * mib).wants_huge_pages
    assert MemoryConfig(64 * mib).wants_huge_pages
    assert MemoryConfig(2 * mib, thp=True).wants_huge_pages
    assert not MemoryConfig(1 << 30, thp=False).wants_huge_pages


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [PAGE_SIZE, 20 * HUGE])
def test_memory_is_there_when_it_is_to_be_prefaulted(shared: bool, size: int) -> None:
    memory = GuestMemory.create([(0, size), (1 << 32, PAGE_SIZE)], shared=shared, prefault=True)
    for region in memory.regions:
        assert all(mincore(region.host, region.size))
    memory.close()


def test_other_threads_go_on_while_memory_is_prefaulted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is the event loop, with all other guests."""
    populate, marks, seen = GuestMapping.populate, [], set()

    def marked(self: GuestMapping, start: int, size: int) -> None:
        marks.append("begun")
        populate(self, start, size)
        marks.append("ended")

    monkeypatch.setattr(GuestMapping, "populate", marked)
    thread = threading.Thread(target=lambda: GuestMemory.create([(0, 128 * HUGE)], prefault=True).close())
    switch = sys.getswitchinterval()
    sys.setswitchinterval(60)  # only a call that lets go of the interpreter lets us in
    try:
        thread.start()
        while thread.is_alive():
            seen.add(tuple(marks))
            time.sleep(0)
    finally:
        sys.setswitchinterval(switch)
    assert ("begun",) in seen


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_is_prefaulted_can_be_given_up(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.memory.populating._PIECE", HUGE)
    asked, filled = [], []
    monkeypatch.setattr(GuestMapping, "populate", lambda self, start, size: filled.append(size))

    def wanted() -> bool:
        asked.append(True)
        return len(asked) <= 3

    with pytest.raises(StateError, match="not wanted"):
        GuestMemory.create([(0, 64 * HUGE)], shared=shared, prefault=True, wanted=wanted)
    assert filled == [HUGE] * 3


def mincore(address: int, size: int) -> list[bool]:
    """Which pages are in memory (mincore(2))."""
    vector = ctypes.create_string_buffer(size // PAGE_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector) == 0
    return [bool(byte & 1) for byte in vector.raw]


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
    gc.collect()  # of what earlier tests have dropped
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


@pytest.mark.parametrize("mergeable", [False, True])
def test_only_what_may_be_merged_is_offered_to_the_kernel(mergeable: bool) -> None:
    memory = GuestMemory.create([(0, 4 << 20)], shared=False, mergeable=mergeable)
    (region,) = memory.regions
    assert ("mg" in _flags(region.host)) is mergeable
    memory.close()


def _flags(address: int) -> list[str]:
    """Of the mapping, as /proc/self/smaps abbreviates them."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("it is not mapped")


def test_where_it_is_never_quiet_those_that_have_gone_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "at_rest", [])
    for _ in range(300):
        GuestMemory().close()
    assert len(trimming.left) <= trimming._MANY


def test_once_many_have_gone_the_system_has_back_what_was_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between the C library's other pieces it keeps, however much it is."""
    calls: list[str] = []
    assert trimming._trim in crew.at_rest
    monkeypatch.setattr(crew, "at_rest", [])
    with crew._resting:  # nobody is at it
        monkeypatch.setattr(trimming, "lib", SimpleNamespace(avmm_mem_trim=lambda: calls.append("trim")))
    gc.collect()
    trimming.left.clear()  # of other tests
    monkeypatch.setattr(trimming, "_trimmed", False)
    closed = [GuestMemory() for _ in range(trimming._MANY)]
    for memory in closed[1:]:
        memory.close()
    assert not trimming._trim()
    assert not calls
    closed[0].close()
    assert trimming._trim(), "some of what they had is on its way, maybe"
    assert not trimming._trim()
    assert calls == ["trim"] * 2
    del memory, closed[1:]
    assert not trimming._trim()
    closed.clear()
    assert trimming._trim(), "and now what referred to them"
    assert not trimming._trim()
    assert not trimming._trim()
    assert calls == ["trim"] * 4, "nobody has left since"
