"""The range map: what answers an address, what is refused, and when changes are told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.bus import Bus, FastPage, Policy, Range, Space
from aiovmm.errors import UsageError


class Echo:
    """Reads give the offset; writes are kept."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def read(self, offset: int, size: int) -> bytes:
        return offset.to_bytes(size, "little")

    def write(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))


def at(base: int, size: int, space: Space = Space.MMIO, name: str = "x") -> Range:
    return Range(space, base, size, Echo(), name)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12), st.data())
def test_it_agrees_with_a_list_of_addresses(wanted: list[tuple[int, int]], data: st.DataObject) -> None:
    bus, owner = Bus(), dict[int, Range]()
    for base, size in wanted:
        rng = at(base, size)
        taken = any(address in owner for address in range(base, base + size))
        if taken:
            with pytest.raises(UsageError, match="overlaps"):
                bus.add(rng)
        else:
            bus.add(rng)
            owner.update(dict.fromkeys(range(base, base + size), rng))
    for rng in data.draw(st.sets(st.sampled_from(list(owner.values()))) if owner else st.just(set())):
        bus.remove(rng)
        owner = {address: one for address, one in owner.items() if one is not rng}
    for address in range(100):
        assert bus.find(Space.MMIO, address) is owner.get(address)
        wide = {owner.get(a) for a in range(address, address + 4)}
        assert bus.find(Space.MMIO, address, 4) is (wide.pop() if len(wide) == 1 else None)


def test_where_nothing_is_reads_are_ones_and_writes_are_dropped() -> None:
    bus = Bus()
    device = Echo()
    bus.add(Range(Space.PIO, 0x60, 4, device, "keyboard"))
    assert bus.read(Space.PIO, 0x62, 1) == b"\x02"
    assert bus.read(Space.PIO, 0x63, 2) == b"\xff\xff"
    assert bus.read(Space.MMIO, 0x62, 4) == b"\xff" * 4
    bus.write(Space.PIO, 0x63, b"ab")
    bus.write(Space.PIO, 0x61, b"c")
    assert device.written == [(1, b"c")]


def test_what_is_wrong_is_refused_by_name() -> None:
    bus = Bus()
    bus.add(at(0x1000, 0x100, name="first"))
    with pytest.raises(UsageError, match=r"'second'.*overlaps 'first'"):
        bus.add(at(0x10FF, 1, name="second"))
    with pytest.raises(UsageError, match="empty"):
        bus.add(at(0, 0))
    with pytest.raises(UsageError, match="fast page has 3 bytes"):
        bus.add(Range(Space.PIO, 0, 4, Echo(), "x", FastPage(3)))
    with pytest.raises(UsageError, match="not on the bus"):
        bus.remove(at(0x1000, 0x100))


def test_changes_in_a_batch_are_told_once_and_nothing_is_told_for_none() -> None:
    bus, told = Bus(), list[int]()
    bus.on_change = lambda: told.append(len(bus.ranges()))
    bus.add(at(0, 1))
    with bus.batch():
        bus.add(at(1, 1))
        with bus.batch():
            bus.add(at(2, 1))
        assert told == [1]
    with bus.batch():
        pass
    assert told == [1, 3]


def test_a_fast_page_has_as_many_bytes_as_it_shows() -> None:
    registers = bytearray(8)
    page = FastPage(8, registers)
    assert page.shadow is registers
    with pytest.raises(UsageError, match="cannot show 8"):
        FastPage(9, registers)


def test_a_shadow_may_end_where_all_accesses_wait_for_good() -> None:
    """What the run loop would read behind it is somebody else's."""
    waits = bytes([Policy.SHADOW_READ] * 8 + [Policy.SYNC] * 8)
    assert FastPage(16, bytearray(8), waits).policy is waits
    for policy in (bytearray(waits), waits[:-1], waits + b"\0", bytes([Policy.SHADOW_READ]) * 16, None):
        with pytest.raises(UsageError, match="cannot show 8"):
            FastPage(16, bytearray(8), policy)
    with pytest.raises(UsageError, match="cannot show 17"):
        FastPage(16, bytearray(17), bytes(16))
