"""A segment as a guest enumerates it, through ECAM and through the ports."""

from __future__ import annotations

import errno
from collections.abc import Awaitable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.bus import Range, Space
from aiovmm.errors import HostError, UsageError
from aiovmm.memory import GuestMemory
from aiovmm.pci.bar import Bar, BarKind
from aiovmm.pci.config_space import ConfigSpace, Identity
from aiovmm.pci.driver import PciDriver
from aiovmm.pci.function import BarRegion, PciFunction
from aiovmm.pci.plan import SegmentPlan, Window, plan_segments
from aiovmm.pci.segment import PciSegment
from aiovmm.testing.pci import ECAM_BASE, MMIO32, RecordingServices


class Registers:
    """16 bytes of storage."""

    def __init__(self) -> None:
        self.data = bytearray(range(16))

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


class Card(PciFunction):
    """Two BARs with registers, which notes where they are."""

    def __init__(self) -> None:
        regions = [
            BarRegion(0, 0x00, 16, Registers(), "card a"),
            BarRegion(0, 0x800, 16, Registers(), "card b"),
            BarRegion(2, 0, 16, Registers(), "card c"),
        ]
        config = ConfigSpace(Identity(0x1234, 0x5678, 0xFF0000))
        bars = [Bar(0, BarKind.MEM32, 0x1000), Bar(2, BarKind.MEM64, 0x1000)]
        super().__init__("card", config, bars, regions)
        self.where: dict[int, int | None] = {}
        self.closed = False

    def bar_moved(self, bar: Bar, address: int | None) -> None:
        self.where[bar.index] = address

    async def close(self) -> None:
        self.closed = True


class StuckCard(Card):
    """The host fails to let go of its first BAR."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go: list[int] = []

    def bar_moved(self, bar: Bar, address: int | None) -> Awaitable[None] | None:  # type: ignore[override]
        return self._let_go(bar.index) if address is None else None

    async def _let_go(self, index: int) -> None:
        if not index:
            raise HostError("unmapping registers", errno.ENOMEM)
        self.let_go.append(index)


def bar_ranges(services: RecordingServices) -> list[Range]:
    return [r for r in services.bus.ranges() if r.name.startswith("card")]


async def test_what_one_bar_meets_on_its_way_out_keeps_no_other_and_the_function_is_closed(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    card = StuckCard()
    slot = segment.add(card)
    driver = PciDriver(services, plan.ecam_base)
    await driver.enumerate()
    await driver.enable(slot)
    with pytest.raises(HostError, match="unmapping registers"):
        await segment.remove(slot)
    assert card.let_go == [2]
    assert card.closed
    assert segment.add(Card()) == slot


@pytest.mark.parametrize("ports", [False, True])
async def test_enumeration_finds_bridge_and_cards(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan, ports: bool
) -> None:
    segment.add(Card())
    segment.add(Card(), slot=31)
    found = await PciDriver(services, None if ports else plan.ecam_base).enumerate()
    assert [(f.slot, f.vendor, f.device) for f in found] == [
        (0, 0x8086, 0x0D57),
        (1, 0x1234, 0x5678),
        (31, 0x1234, 0x5678),
    ]
    assert found[0].class_code == 0x060000
    assert found[0].bars == ()
    first, second = found[1].bars
    assert (first.index, first.kind, first.size, first.address) == (0, BarKind.MEM32, 0x1000, MMIO32.base)
    assert (second.index, second.kind, second.size, second.address) == (2, BarKind.MEM64, 0x1000, plan.mmio64.base)


async def test_reads_of_ecam_never_wait(segment: PciSegment, services: RecordingServices, plan: SegmentPlan) -> None:
    segment.add(Card())
    driver = PciDriver(services, plan.ecam_base)
    for slot in range(32):
        for offset in range(0, 256, 4):
            driver.read(slot, offset)
    assert services.waited == 0


async def test_of_the_extended_space_nobody_is_shown_what_lies_behind_the_registers(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    slot = segment.add(Card())
    page = plan.ecam_base + (slot << 15)
    for offset in (*range(256, 4096, 4), 0xFE):  # the last one lies across the end
        assert services.read(page + offset, 4) == bytes(4)
    assert services.waited == 3840 // 4 + 1


def test_what_is_absent_reads_as_ones(segment: PciSegment, services: RecordingServices, plan: SegmentPlan) -> None:
    assert services.read(plan.ecam_base + (5 << 15), 4) == b"\xff" * 4
    assert services.read(plan.ecam_base + (1 << 12), 4) == b"\xff" * 4, "function 1 of the bridge"
    assert segment.read_config(9, 0, 2) == b"\xff\xff"
    assert segment.write_config(9, 0, b"\0") is None


async def test_bars_answer_only_while_decoding(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    card = Card()
    slot = segment.add(card)
    driver = PciDriver(services, plan.ecam_base)
    function = await driver.probe(slot)
    address = function.bars[0].address
    assert services.read(address, 4) == b"\xff" * 4
    await driver.enable(slot)
    assert services.read(address + 4, 4) == bytes([4, 5, 6, 7])
    assert services.read(address + 0x400, 4) == b"\xff" * 4, "between the regions"
    assert card.where == {0: address, 2: function.bars[1].address}
    await driver.write(slot, 4, 0, 2)
    assert services.read(address, 4) == b"\xff" * 4
    assert bar_ranges(services) == []
    assert card.where == {0: None, 2: None}


async def test_a_change_of_bars_is_published_once(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    published: list[int] = []
    services.bus.on_change = lambda: published.append(len(bar_ranges(services)))
    slot = segment.add(Card())
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(slot)
    await driver.write(slot, 0x10, 0xD0000000)
    await driver.write(slot, 0x3C, 5, 1)
    await segment.remove(slot)
    assert published == [0, 3, 3, 0]


async def test_sizing_with_decoding_off_publishes_nothing(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    slot = segment.add(Card())
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(slot)
    published: list[int] = []
    services.bus.on_change = lambda: published.append(len(bar_ranges(services)))
    command = driver.read(slot, 0x04, 2)
    await driver.write(slot, 0x04, 0, 2)
    for register in (0x10, 0x14, 0x18):
        was = driver.read(slot, register)
        await driver.write(slot, register, 0xFFFFFFFF)
        await driver.write(slot, register, was)
    await driver.write(slot, 0x04, command, 2)
    assert published == [0, 3], "taken away, and back"


async def test_a_moved_bar_answers_at_its_new_place(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    slot = segment.add(Card())
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(slot)
    await driver.write(slot, 0x10, 0xD0000000)
    assert services.read(0xD0000800, 4) == bytes([0, 1, 2, 3])
    assert services.read(MMIO32.base, 4) == b"\xff" * 4


async def test_sizing_while_decoding_takes_the_bar_away_and_back(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    slot = segment.add(Card())
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(slot)
    await driver.write(slot, 0x10, 0xFFFFFFFF)
    assert services.read(MMIO32.base, 4) == b"\xff" * 4
    assert driver.read(slot, 0x10) == 0xFFFFF000
    await driver.write(slot, 0x10, MMIO32.base)
    assert services.read(MMIO32.base, 4) == bytes([0, 1, 2, 3])


async def test_a_bar_on_another_loses_until_it_is_alone(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    one, two = Card(), Card()
    a, b = segment.add(one), segment.add(two)
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(a)
    await driver.enable(b)
    await driver.write(b, 0x10, MMIO32.base)
    assert two.where[0] is None
    await driver.write(a, 0x10, 0xD0000000)
    assert two.where[0] == MMIO32.base


async def test_a_bar_over_something_of_the_machine_loses(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    services.bus.add(Range(Space.MMIO, 0xD0000800, 0x100, Registers(), "machine"))
    card = Card()
    slot = segment.add(card)
    driver = PciDriver(services, plan.ecam_base)
    await driver.enable(slot)
    await driver.write(slot, 0x10, 0xD0000000)
    assert card.where[0] is None
    assert services.read(0xD0000000, 4) == b"\xff" * 4
    await driver.write(slot, 0x10, 0xD1000000)
    assert card.where[0] == 0xD1000000


async def test_unplugging_gives_everything_back(
    segment: PciSegment, services: RecordingServices, plan: SegmentPlan
) -> None:
    before = services.bus.ranges()
    card = Card()
    slot = segment.add(card)
    await PciDriver(services, plan.ecam_base).enable(slot)
    await segment.remove(slot)
    assert card.closed
    assert card.where == {0: None, 2: None}
    assert services.bus.ranges() == before
    again = Card()
    assert segment.add(again) == slot
    assert [bar.address(again.config) for bar in again.bars] == [bar.address(card.config) for bar in card.bars]
    with pytest.raises(UsageError, match="nothing in slot 7"):
        await segment.remove(7)


async def test_a_segment_holds_31_devices_and_closes(segment: PciSegment, services: RecordingServices) -> None:
    assert [segment.add(Card()) for _ in range(31)] == list(range(1, 32))
    with pytest.raises(UsageError, match="full"):
        segment.add(Card())
    with pytest.raises(UsageError, match="slot 3 is taken"):
        segment.add(Card(), slot=3)
    await segment.close()
    assert [r.name for r in services.bus.ranges()] == ["pci config ports"]
    await segment.close()


async def test_segments_are_apart(services: RecordingServices) -> None:
    plans = plan_segments(3, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))
    segments = [PciSegment(p, services) for p in plans]
    for s in segments:
        s.add(Card())
    for plan in plans:
        driver = PciDriver(services, plan.ecam_base)
        found = await driver.enumerate()
        assert [f.slot for f in found] == [0, 1]
        assert plan.mmio32.holds(found[1].bars[0].address, 0x1000)
        assert plan.mmio64.holds(found[1].bars[1].address, 0x1000)
        await driver.enable(1)
    assert len(bar_ranges(services)) == 9


CONFIG_WRITES = st.tuples(
    st.sampled_from([1, 2, 3]),
    st.one_of(st.integers(0, 0x3F), st.integers(0, 4095)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0xC0000000, 0xC0001000, 0xFFFFFFFF, 7, 2, 0])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CONFIG_WRITES, max_size=40))
def test_no_configuration_write_raises_or_leaves_a_range_behind(writes: list[tuple[int, int, int, int]]) -> None:
    memory = GuestMemory.create([(0, 4096)])
    services = RecordingServices(memory)
    plan = plan_segments(1, ECAM_BASE, MMIO32, Window(4 << 30, 64 << 30))[0]
    segment = PciSegment(plan, services)
    cards = [Card(), Card(), Card()]
    for card in cards:
        segment.add(card)
    for slot, offset, size, value in writes:
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        services.write(plan.ecam_base + (slot << 15) + offset, data)
        services.read(plan.ecam_base + (slot << 15) + offset, size)
        mapped = sum((2 if index == 0 else 1) for c in cards for index, at in c.where.items() if at is not None)
        assert len(bar_ranges(services)) == mapped
    for slot in (1, 2, 3):
        services.write(plan.ecam_base + (slot << 15) + 4, b"\0\0")
    assert bar_ranges(services) == []
    memory.close()
