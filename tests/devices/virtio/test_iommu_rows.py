"""Very many mappings: what one request changes is found, whatever there is besides, and costs no more for that."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.devices.virtio.iommu import IommuDevice, rows
from aiovmm.devices.virtio.iommu import device as device_module
from aiovmm.devices.virtio.iommu.domains import Added, Domains, Removed
from aiovmm.devices.virtio.iommu.mappings import Mapping, Mappings
from aiovmm.devices.virtio.iommu.rows import Leaf, Rows
from aiovmm.devices.virtio.iommu.table import DomainTable, Pieces
from aiovmm.devices.virtio.iommu.wire import Attach, Detach, Map, Status, Unmap
from aiovmm.errors import SnapshotError
from aiovmm.memory import GuestMemory
from aiovmm.native import ffi, lib
from aiovmm.testing.pci import MESSAGES
from tests.steps import steps_of

PAGE = 4096
END = (1 << 48) - 1
RAM = 1 << 20


class Pair(Leaf):
    width = 2


@pytest.fixture(params=[4, 16])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Leaves that are full soon."""
    size: int = request.param
    monkeypatch.setattr(rows, "LEAF", size)
    return size


def checked(tested: Rows[Pair], leaf: int) -> list[tuple[int, ...]]:
    sizes = [len(each) for each in tested.leaves]
    assert all(0 < size <= leaf for size in sizes)
    assert all(one + other > leaf // 2 for one, other in itertools.pairwise(sizes)), "there are not many for few"
    assert tested._firsts == [each.keys[0] for each in tested.leaves]
    assert len(tested) == sum(sizes)
    return list(tested)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_a_sorted_list(small: int, seed: int) -> None:
    """Against one."""
    rng, tested, model = random.Random(seed), Rows(Pair), dict[int, int]()
    for _ in range(400):
        key, other = rng.randrange(300), rng.randrange(300)
        if rng.random() < 0.75:
            if key not in model:
                tested.insert((key, other))
                model[key] = other
        else:
            low, high = sorted((key, min(other, key + 40) if rng.random() < 0.8 else other))
            gone = {k: v for k, v in model.items() if low <= k <= high}
            assert [row for leaf in tested.cut(low, high) for row in zip(*leaf.columns, strict=True)] == sorted(
                gone.items()
            )
            model = {k: v for k, v in model.items() if k not in gone}
        assert checked(tested, small) == sorted(model.items())
        place, below = tested.before(other), [k for k in model if k <= other]
        assert (place and place[0].keys[place[1]]) == (max(below) if below else None)


def native(table: DomainTable, address: int, size: int, perm: int) -> int | None:
    """Where native code finds it, as an address of the host's."""
    mem = ffi.new("struct avmm_mem *", {"count": table.count, "regions": table.regions})
    found = lib.avmm_mem_find(mem, address, size, perm)
    return None if found == ffi.NULL else int(ffi.cast("uintptr_t", found))


@pytest.mark.parametrize("seed", range(6))
def test_native_code_finds_each_mapping_and_nothing_between(small: int, seed: int) -> None:
    rng, memory = random.Random(seed), GuestMemory.create([(0, RAM)])
    table, there = DomainTable(memory), dict[int, tuple[int, int]]()
    told: list[int] = []
    table.watchers[table] = lambda: told.append(table.count)
    for _ in range(250):
        page = rng.randrange(200)
        if rng.random() < 0.7:
            if page not in there:
                there[page] = rng.randrange(RAM // PAGE) * PAGE, rng.randint(1, 3)
                physical, perm = there[page]
                table.add(Mapping(page * PAGE, page * PAGE + PAGE - 1, physical, perm))
        else:
            last = page + rng.randrange(60)
            table.remove(page * PAGE, last * PAGE + PAGE - 1)
            there = {at: what for at, what in there.items() if not page <= at <= last}
    assert told[-1] == table.count
    for page in range(261):
        physical, perm = there.get(page, (0, 0))
        host = memory.host_address(physical, PAGE) if page in there else None
        for wanted in (1, 2, 3):
            assert native(table, page * PAGE, PAGE, wanted) == (host if perm & wanted == wanted else None)
        assert native(table, page * PAGE + 1, PAGE, 1) is None
        assert (table.find(page * PAGE + 7) is not None) is (page in there)
    assert [(p.base, p.size, p.gpa, p.perm) for p in table.pieces] == [
        (page * PAGE, PAGE, *there[page]) for page in sorted(there)
    ]
    memory.close()


def filled(count: int) -> tuple[Domains, DomainTable, GuestMemory]:
    """A domain with so many mappings, of which no two are beside each other."""
    memory = GuestMemory.create([(0, RAM)])
    domains, table = Domains(input_end=END, messages=MESSAGES), DomainTable(memory)
    domains.add_endpoint(1)
    domains.handle(Attach(1, 1, 0, b""))
    for n in range(count):
        carried_out(domains, table, Map(1, 2 * n * PAGE, 2 * n * PAGE + PAGE - 1, n % 256 * PAGE, 3))
    return domains, table, memory


def carried_out(domains: Domains, table: DomainTable, request: Any) -> None:
    outcome = domains.handle(request)
    assert outcome.status is Status.OK
    for effect in outcome.effects:
        if isinstance(effect, Added):
            table.add(effect.mapping)
        elif isinstance(effect, Removed):
            table.remove(effect.start, effect.end)


@pytest.mark.parametrize(
    "request_", [Unmap(1, 0, END, b""), Detach(1, 1, b""), Map(1, PAGE, 2 * PAGE - 1, 0, 3), Unmap(1, 0, PAGE - 1, b"")]
)
def test_no_request_is_more_work_for_the_loop_the_more_mappings_there_are(request_: Any) -> None:
    """But for a leaf of them. A guest may have 2^18, and take all away at once."""

    def steps(count: int) -> int:
        domains, table, memory = filled(count)
        taken = steps_of(lambda: carried_out(domains, table, request_))
        memory.close()
        return taken

    few, many = 4, 1 << 14
    assert steps(many) <= steps(few) + 40 * (many // rows.LEAF)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20), st.integers(0, 33), st.integers(0, 33))
@settings(deadline=None)
def test_what_would_be_split_is_known(spans: list[tuple[int, int]], start: int, end: int) -> None:
    mappings, model = Mappings(), list[tuple[int, int]]()
    for one, other in spans:
        low, high = min(one, other), max(one, other)
        taken = any(s <= high and e >= low for s, e in model)
        assert mappings.overlaps(low, high) is taken
        if not taken:
            model.append((low, high))
            mappings.add(Mapping(low, high, 0, 3))
    start, end = min(start, end), max(start, end)
    touched = [(s, e) for s, e in model if s <= end and e >= start]
    assert mappings.splits(start, end) is any(s < start or e > end for s, e in touched)
    if not mappings.splits(start, end):
        gone = sorted(touched)
        assert mappings.remove(start, end) == ((len(gone), gone[0][0], gone[-1][1]) if gone else (0, 0, 0))
        assert [(m.start, m.end) for m in mappings] == sorted(set(model) - set(touched))


def test_pieces_stay_what_they_were() -> None:
    _, table, memory = filled(5000)
    then = table.pieces
    table.remove(0, END)
    assert len(list(then)) == 5000
    assert list(table.pieces) == []
    assert isinstance(then, Pieces)
    memory.close()


async def test_a_snapshot_of_very_many_mappings_is_loaded_in_many_turns() -> None:
    old, _, memory = filled(4000)
    device = IommuDevice(MESSAGES)
    device.power_on(memory)
    device.add_endpoint(1, device.translation(), Nobody())
    turns, loading = 0, asyncio.ensure_future(device.load({"domains": old.save(), "faults": []}))
    while not loading.done():
        turns += 1
        await asyncio.sleep(0)
    await loading
    assert turns > 4000 // 100
    assert device.domains.save() == old.save()
    assert len(device._tables[1]) == 4000
    device.power_off()
    memory.close()


async def test_mappings_that_cross_many_regions_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a record for each region of memory that it crosses."""
    monkeypatch.setattr(device_module, "PIECES_LIMIT", 20)
    regions, span = 5, 5 << 20
    memory = GuestMemory.create([(n << 20, 8 * PAGE) for n in range(regions)])
    device = IommuDevice(MESSAGES)
    device.power_on(memory)
    device.add_endpoint(1, device.translation(), Nobody())

    def status(request: Any) -> Status:
        outcome = device._handle(request)
        device._carry_out(outcome.effects)
        return outcome.status

    assert status(Attach(1, 1, 0, b"")) is Status.OK
    answers = [status(Map(1, n * span, (n + 1) * span - 1, 0, 3)) for n in range(6)]
    assert answers == [Status.OK] * 4 + [Status.NOMEM] * 2
    assert status(Unmap(1, 0, span - 1, b"")) is Status.OK
    assert status(Map(1, 0, span - 1, 0, 3)) is Status.OK
    device.power_off()
    memory.close()


@pytest.mark.parametrize("count", [4, 5, 6])
async def test_no_more_of_them_come_with_a_snapshot(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them may be small, and their records together more than the host has memory for."""
    monkeypatch.setattr(device_module, "PIECES_LIMIT", 20)
    regions, span = 5, 5 << 20
    memory = GuestMemory.create([(n << 20, 8 * PAGE) for n in range(regions)])
    device, saved = IommuDevice(MESSAGES), Domains(input_end=(1 << 48) - 1, messages=MESSAGES)
    device.power_on(memory)
    device.add_endpoint(1, device.translation(), Nobody())
    saved.add_endpoint(1)
    assert saved.handle(Attach(1, 1, 0, b"")).status is Status.OK
    for n in range(count):
        assert saved.handle(Map(1, n * span, (n + 1) * span - 1, 0, 3)).status is Status.OK
    state = {"domains": saved.save(), "faults": []}
    if count == 4:
        await device.load(state)
        assert device.save() == state
    else:
        with pytest.raises(SnapshotError, match="iommu: its mappings take more than 20 pieces of memory"):
            await device.load(state)
    device.power_off()
    memory.close()


class Nobody:
    def uses(self, _start: int, _end: int) -> bool:
        return False

    async def revalidate(self) -> None:
        return
