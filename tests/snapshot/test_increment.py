"""Pages that were written since the last snapshot, and memory from a chain of increments: whatever is written, given back or
read between, and by whomever."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiovmm.errors import HostError, SnapshotError
from aiovmm.memory import Backing, GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.snapshot.base import Base
from aiovmm.snapshot.chain import MOST, base_at, open_chain
from aiovmm.snapshot.directory import STATE, Written
from aiovmm.snapshot.increment import file_size, open_increment
from aiovmm.snapshot.pages import Kept
from aiovmm.snapshot.taking import SavedMemory
from tests.open_files import descriptors
from tests.snapshot.test_pages import PAGE, RANGES, SIZE, place

pytestmark = pytest.mark.usefixtures("writes_are_known")
STATE_OF_ONE = {"architecture": "x86_64", "config": {"name": "a"}, "machine": {"n": 1}}
PAGES = st.integers(0, 639)
WRITE, ZERO, BACK, READ = "write", "zero", "give back", "read"
STEPS = st.lists(st.tuples(st.sampled_from([WRITE, WRITE, ZERO, BACK, READ]), PAGES, st.integers(1, 255)), max_size=30)
SOME = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def do(memory: GuestMemory, steps: list[tuple[str, int, int]]) -> None:
    for what, page, value in steps:
        if what == WRITE:
            memory.write(place(page) + 8 * value, bytes([value]))
        elif what == ZERO:
            memory.write(place(page), bytes(PAGE))
        elif what == READ:
            memory.read(place(page), 1)
        else:
            span = ffi.new("struct avmm_span[]", [{"host": memory.host_address(place(page), PAGE), "size": PAGE}])
            assert lib.avmm_mem_give_back(span, 1) == 0


def content(memory: GuestMemory) -> bytes:
    return b"".join(memory.read(gpa, size) for gpa, size in RANGES)


def save(memory: GuestMemory, path: Path, base: Path | None = None, *, commit: bool = True) -> int:
    """As a VM that stands still is; how many pages it has."""
    size = sum(region.size for region in memory.regions)
    over = None if base is None else base_at(base, path, size)
    saved, written = SavedMemory(memory, over, track=True), Written(path, size, over)
    saved.check(base)
    try:
        written.open()
        saved.begin(written.memory)
        saved.take()
        kept, maps = saved.finish()
        if commit:
            saved.taken(written.commit(STATE_OF_ONE, kept.pages, kept.sum, maps))
    finally:
        saved.close()
        written.close()
    return kept.pages


def opened(path: Path) -> Base:
    chain = open_chain(path)
    return Base(chain.whole, chain.increments, chain.identity)


def restored(path: Path) -> GuestMemory:
    base = opened(path)
    memory = base.map(RANGES)
    base.release()
    return memory


def in_file(path: Path) -> bytes:
    memory = restored(path)
    try:
        return content(memory)
    finally:
        memory.close()


@pytest.mark.parametrize("thp", [False, True])
@SOME
@given(st.lists(STEPS, min_size=2, max_size=4), st.data())
def test_a_chain_has_what_the_memory_had_each_time(
    tmp_path_factory: pytest.TempPathFactory, thp: bool, rounds: list[list[tuple[str, int, int]]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("chain")
    memory = GuestMemory.create(RANGES, shared=False, thp=thp)
    expected: list[bytes] = []
    for number, steps in enumerate(rounds):
        do(memory, steps)
        if number and data.draw(st.booleans()):  # one that comes to nothing
            save(memory, path / f"s{number}", path / f"s{number - 1}", commit=False)
        save(memory, path / f"s{number}", path / f"s{number - 1}" if number else None)
        expected.append(content(memory))
    memory.close()
    for number, content_then in enumerate(expected):
        assert in_file(path / f"s{number}") == content_then


@SOME
@given(STEPS, STEPS, st.lists(STEPS, min_size=1, max_size=3), st.booleans(), st.booleans())
def test_a_restored_guest_goes_on_with_the_chain(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, int, int]],
    second: list[tuple[str, int, int]],
    rounds: list[list[tuple[str, int, int]]],
    flat: bool,
    over_origin: bool,
) -> None:
    """Each time over the last, or all over the one that it was restored from; or from a template's copy of that."""
    path = tmp_path_factory.mktemp("chain")
    memory = GuestMemory.create(RANGES, shared=False)
    do(memory, first)
    save(memory, path / "s0")
    do(memory, second)
    save(memory, path / "s1", path / "s0")
    memory.close()
    base = opened(path / "s1")
    if flat:
        one, base = base, base.flat()
        one.release()
    memory = base.map(RANGES)
    base.release()
    last = path / "s1"
    expected = []
    for number, steps in enumerate(rounds, 2):
        do(memory, steps)
        save(memory, path / f"s{number}", path / "s1" if over_origin else last)
        last = path / f"s{number}"
        expected.append(content(memory))
    memory.close()
    for number, content_then in enumerate(expected, 2):
        assert in_file(path / f"s{number}") == content_then


def test_only_what_was_written_is_in_it(tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    for page in range(640):
        memory.write(place(page), b"x")
    assert save(memory, tmp_path / "a") == 640
    assert save(memory, tmp_path / "b", tmp_path / "a") == 0
    do(memory, [(WRITE, 5, 1), (WRITE, 639, 1), (READ, 7, 1), (ZERO, 9, 1), (BACK, 11, 1)])
    assert save(memory, tmp_path / "c", tmp_path / "b") == 2
    (increment,) = (tmp_path / "c").glob("memory-*")
    assert increment.stat().st_size == 4 * PAGE
    memory.close()


def test_what_the_kernel_writes_for_us_is_in_it(tmp_path: Path) -> None:
    """By a system call, and by direct I/O, which goes past the processor."""
    memory = GuestMemory.create(RANGES, shared=False)
    for page in range(640):
        memory.write(place(page), b"x")
    (tmp_path / "file").write_bytes(b"y" * PAGE)
    save(memory, tmp_path / "a")
    with open(tmp_path / "file", "rb", buffering=0) as file:
        os.preadv(file.fileno(), [memory.slice(place(3), PAGE)], 0)
    direct = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    os.preadv(direct, [memory.slice(place(630), PAGE)], 0)
    os.close(direct)
    assert save(memory, tmp_path / "b", tmp_path / "a") == 2
    assert in_file(tmp_path / "b") == content(memory)
    memory.close()


@pytest.mark.parametrize("room", [1, 2, 7])
def test_more_than_was_expected_finds_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr("aiovmm.snapshot.increment._ROOM", room * PAGE)
    there = chain_of_three(tmp_path)
    assert in_file(tmp_path / "c") == there
    chain = open_chain(tmp_path / "c")
    assert all(increment.verify() for increment in chain.increments)
    chain.close()


def test_nothing_is_known_of_other_snapshots(tmp_path: Path) -> None:
    memory, other = GuestMemory.create(RANGES, shared=False), GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    save(other, tmp_path / "o")
    save(memory, tmp_path / "b", tmp_path / "a")
    for base in ("o", "a"):  # "a" is not the last
        with pytest.raises(SnapshotError, match="it is not known what the guest has written since the snapshot at"):
            save(memory, tmp_path / "c", tmp_path / base)
    memory.close()
    other.close()


def test_memory_that_it_cannot_be_known_of(tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=True)
    with pytest.raises(SnapshotError, match="needs private memory"):
        save(memory, tmp_path / "a")
    memory.close()


def test_a_host_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole snapshots are to be had, and increments over the one that the guest was restored from."""
    memory = GuestMemory.create(RANGES, shared=False)
    do(memory, [(WRITE, 1, 1), (WRITE, 2, 2)])
    save(memory, tmp_path / "a")
    memory.close()

    class Old:
        def __getattr__(self, name: str) -> object:
            return (lambda: -22) if name == "avmm_dirty_open" else getattr(lib, name)

    monkeypatch.setattr("aiovmm.snapshot.dirty.lib", Old())
    memory = GuestMemory.create(RANGES, shared=False)
    with pytest.raises(SnapshotError, match=r"needs userfaultfd's asynchronous write protection \(Linux 6\.7"):
        save(memory, tmp_path / "b")
    memory.close()
    memory = restored(tmp_path / "a")
    do(memory, [(WRITE, 3, 3)])
    assert save(memory, tmp_path / "b", tmp_path / "a") == 1
    do(memory, [(WRITE, 4, 3), (BACK, 3, 1)])
    assert save(memory, tmp_path / "c", tmp_path / "a") == 1
    assert in_file(tmp_path / "c") == content(memory)
    memory.close()


def test_memory_that_came_or_went(tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    memory.unmap(memory.regions[1])
    with pytest.raises(SnapshotError, match="/a: memory of the guest came or went since: take a whole snapshot"):
        save(memory, tmp_path / "b", tmp_path / "a")
    memory.add_ram([(2 << 32, 2 * PAGE)], Backing(shared=False))
    save(memory, tmp_path / "b")
    memory.write(2 << 32, b"x")
    assert save(memory, tmp_path / "c", tmp_path / "b") == 1
    memory.close()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = descriptors()
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    save(memory, tmp_path / "b", tmp_path / "a")
    memory.close()
    in_file(tmp_path / "b")
    opened(tmp_path / "b").release()
    (tmp_path / "a" / STATE).unlink()
    with pytest.raises(SnapshotError):
        open_chain(tmp_path / "b")
    assert descriptors() <= before


# -- directories


def chain_of_three(tmp_path: Path) -> bytes:
    memory = GuestMemory.create(RANGES, shared=False)
    for number, name in enumerate("abc"):
        do(memory, [(WRITE, page, number + 1) for page in range(number, 640, 7)])
        save(memory, tmp_path / name, tmp_path / "abc"[number - 1] if number else None)
    there = content(memory)
    memory.close()
    return there


def test_a_chain_can_be_moved_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    there = chain_of_three(tmp_path / "one")
    os.rename(tmp_path / "one", tmp_path / "other")
    assert in_file(tmp_path / "other" / "c") == there
    monkeypatch.chdir(tmp_path / "other")
    assert in_file(Path("c")) == there


def test_a_base_that_is_missing_or_another(tmp_path: Path) -> None:
    chain_of_three(tmp_path)
    os.rename(tmp_path / "b", tmp_path / "x")
    with pytest.raises(
        SnapshotError, match=r"/c: it is over the snapshot at .*/b, which cannot be had: .*No such file"
    ):
        open_chain(tmp_path / "c")
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "b")
    memory.close()
    with pytest.raises(SnapshotError, match=r"that was at .*/b, and that is another one by now: put"):
        open_chain(tmp_path / "c")


def test_a_place_that_cannot_be_is_an_error_of_the_host(tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    with pytest.raises(HostError, match=r"writing a snapshot.*name too long"):
        base_at(tmp_path / "a", tmp_path / ("x" * 300), memory.size)
    memory.close()


def test_one_does_not_take_the_place_of_what_it_needs(tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    save(memory, tmp_path / "b", tmp_path / "a")
    for place_of_old in ("a", "b"):
        with pytest.raises(SnapshotError, match="is needed by the new one: give that another directory"):
            save(memory, tmp_path / place_of_old, tmp_path / "b")
    memory.close()
    assert in_file(tmp_path / "b") == bytes(SIZE)


def test_a_chain_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovmm.snapshot.chain.MOST", 2)
    memory = GuestMemory.create(RANGES, shared=False)
    save(memory, tmp_path / "a")
    save(memory, tmp_path / "b", tmp_path / "a")
    with pytest.raises(SnapshotError, match="2 snapshots one over the other already"):
        save(memory, tmp_path / "c", tmp_path / "b")
    memory.close()
    assert MOST == 64


WRITER = """
import sys
from pathlib import Path
from aiovmm.memory import GuestMemory
from tests.snapshot.test_increment import RANGES, do, save
path, memory, number = Path(sys.argv[1]), GuestMemory.create(RANGES, shared=False), 0
while number < 60:
    do(memory, [("write", number, 1 + number % 250)])
    save(memory, path / str(number), path / str(number - 1) if number else None)
    print(number, flush=True)
    number += 1
sys.stdin.read()
"""


def test_who_is_killed_leaves_a_whole_chain(tmp_path: Path) -> None:
    for turn in range(1, 6):
        folder = tmp_path / str(turn)
        folder.mkdir()
        root = Path(__file__).resolve().parent.parent.parent
        command = [sys.executable, "-c", WRITER, str(folder)]
        with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(turn * 3):  # then somewhere in the next
                last = int(writer.stdout.readline())
            writer.kill()
        expected = bytearray(SIZE)
        for number in range(last + 1):
            expected[number * PAGE + 8 * (1 + number % 250)] = 1 + number % 250
        assert in_file(folder / str(last)) == expected


def test_a_disk_that_is_full_loses_nothing(small: Path, tmp_path: Path) -> None:
    memory = GuestMemory.create(RANGES, shared=False)
    do(memory, [(WRITE, 0, 1)])
    save(memory, small / "a")
    do(memory, [(WRITE, page, 2) for page in range(200)])
    with pytest.raises(HostError, match="writing guest memory: No space left"):
        save(memory, small / "b", small / "a")
    assert not (small / "b").exists()
    do(memory, [(BACK, page, 2) for page in range(8, 200)])
    save(memory, small / "b", small / "a")
    shutil.copytree(small, tmp_path / "copy")  # a full tmpfs has no page for a hole that is looked at
    assert in_file(tmp_path / "copy" / "b") == content(memory)
    memory.close()


@pytest.mark.parametrize("at", [0, PAGE, 2 * PAGE, -1])
def test_damage_is_found(tmp_path: Path, at: int) -> None:
    """In the maps at once, in the pages when they are summed up."""
    chain_of_three(tmp_path)
    (file,) = (tmp_path / "b").glob("memory-*")
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    if at in (0, PAGE):
        with pytest.raises(SnapshotError, match=r"/b: the map of its pages is not what was saved"):
            open_chain(tmp_path / "c")
        return
    chain = open_chain(tmp_path / "c")
    assert [increment.verify() for increment in chain.increments] == [True, False]
    chain.close()


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    chain_of_three(tmp_path)
    (file,) = (tmp_path / "b").glob("memory-*")
    os.truncate(file, file.stat().st_size - PAGE)
    with pytest.raises(SnapshotError, match="was cut short"):
        open_chain(tmp_path / "c")


def test_maps_that_contradict_themselves_are_refused() -> None:
    """A page that is full and not changed, more pages than there are: a sum can be made for these, too."""
    for changed, full, pages in ((b"\1", b"\3", 2), (b"\7", b"\3", 1)):
        maps = changed.ljust(PAGE, b"\0") + full.ljust(PAGE, b"\0")
        fd = os.memfd_create("increment")
        os.write(fd, maps)
        with pytest.raises(SnapshotError, match="map of its pages"):
            open_increment(fd, SIZE, Kept(pages, 0), hashlib.sha256(maps).hexdigest())
        os.close(fd)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_a_map_that_is_nothing_but_a_claim_is_no_memory() -> None:
    """A file of holes says that a guest has a terabyte; of 64 of them in a chain each would have had 160 MiB, and 9 s."""
    size, fd = 1 << 40, os.memfd_create("increment")
    length = file_size(size, 0)
    os.ftruncate(fd, length)
    before = resident()
    increment = open_increment(fd, size, Kept(0, 0), hashlib.sha256(bytes(length)).hexdigest())
    assert resident() - before < length // 4
    increment.close()


def test_a_guest_with_more_memory_than_there_is_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(SnapshotError, match=f"it is of a guest with {1 << 52} bytes of memory"):
        open_increment(-1, 1 << 52, Kept(0, 0), "")


def test_a_file_that_is_cut_short_under_way(tmp_path: Path) -> None:
    chain_of_three(tmp_path)
    base = opened(tmp_path / "c")
    (file,) = (tmp_path / "b").glob("memory-*")
    os.truncate(file, 2 * PAGE)
    with pytest.raises(HostError, match="reading the pages of an incremental snapshot"):
        base.map(RANGES)
    base.release()
