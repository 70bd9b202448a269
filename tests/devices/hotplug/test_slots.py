"""The registers of PCI slots, under whatever a driver does to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiovmm.bus import Policy
from aiovmm.devices.hotplug.slots import SEGMENT_SIZE, SlotRegisters
from aiovmm.errors import SnapshotError
from tests.limits import HANGS

SEGMENTS = 3
segments, slots = st.integers(0, SEGMENTS - 1), st.integers(1, 31)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["added", "ask", "gone", "forget"]), segments, slots),
    st.tuples(st.just("read"), st.integers(0, SEGMENTS * SEGMENT_SIZE - 4), st.sampled_from([1, 2, 4])),
    st.tuples(st.just("write"), st.integers(0, SEGMENTS * SEGMENT_SIZE - 4), st.binary(min_size=1, max_size=4)),
)


class Model:
    """What the registers should be: sets of (segment, slot)."""

    def __init__(self) -> None:
        self.added: set[tuple[int, int]] = set()
        self.wanted: set[tuple[int, int]] = set()
        self.asked: set[tuple[int, int]] = set()
        self.ejected: list[tuple[int, int]] = []
        self.gone: set[tuple[int, int]] = set()
        self.left: list[tuple[int, int]] = []

    def do(self, name: str, segment: int, slot: int) -> None:
        at = segment, slot
        if name == "added":
            self.added.add(at)
        elif name == "ask":
            self.wanted.add(at)
            self.asked.add(at)
        else:
            self.added.discard(at)
            self.asked.discard(at)
            if name == "gone":
                self.wanted.add(at)
                self.gone.add(at)

    def byte(self, offset: int) -> int:
        segment, at = divmod(offset, SEGMENT_SIZE)
        register = self.wanted if at >= 4 else self.added
        here = {(segment, slot) for slot in range(at % 4 * 8, at % 4 * 8 + 8)}
        value = sum(1 << slot % 8 for _, slot in register & here)
        register -= here
        return value

    def write(self, offset: int, data: bytes) -> None:
        segment, at = divmod(offset, SEGMENT_SIZE)
        bits = int.from_bytes(data[: max(4 - at, 0)], "little") << 8 * at if at < 4 else 0
        for slot in range(32):
            if bits >> slot & 1 and (segment, slot) in self.gone:
                self.gone.remove((segment, slot))
                self.left.append((segment, slot))
            if bits >> slot & 1 and (segment, slot) in self.asked:
                self.asked.remove((segment, slot))
                self.wanted.discard((segment, slot))
                self.ejected.append((segment, slot))


@given(st.lists(STEPS, max_size=40))
def test_whatever_a_driver_does_only_what_was_asked_for_is_ejected_once(steps: list[tuple[str, int, object]]) -> None:
    model, ejected, left = Model(), [], []
    registers = SlotRegisters(SEGMENTS)
    registers.on_left = lambda segment, slot: left.append((segment, slot))
    registers.on_eject = lambda segment, slot: ejected.append((segment, slot))
    for name, first, second in steps:
        if name == "read":
            assert isinstance(second, int)
            assert registers.read(first, second) == bytes(model.byte(first + i) for i in range(second))
        elif name == "write":
            assert isinstance(second, bytes)
            registers.write(first, second)
            model.write(first, second)
        else:
            assert isinstance(second, int)
            getattr(registers, name)(first, second)
            model.do(name, first, second)
        assert ejected == model.ejected
        assert left == model.left
        for segment in range(SEGMENTS):
            check_policy(registers, model, segment)
    copy = SlotRegisters(SEGMENTS)
    copy.load(registers.save())
    assert copy.save() == registers.save()
    for at in range(0, SEGMENTS * SEGMENT_SIZE, 8):
        assert copy.read(at, 8)[:4] == registers.read(at, 4)
        assert copy.read(at, 8) == bytes(8)


def check_policy(registers: SlotRegisters, model: Model, segment: int) -> None:
    """An access is an exit to the loop only where it does something: a storm of others costs the loop nothing."""
    policy = set(registers.fast.policy[segment * SEGMENT_SIZE : (segment + 1) * SEGMENT_SIZE])
    assert len(policy) == 1
    told = any(s == segment for s, _ in model.added | model.wanted)
    assert bool(policy.pop() & Policy.SHADOW_READ) is not told
    assert bool(registers.fast.policy[segment * SEGMENT_SIZE] & Policy.IGNORE_WRITE) is not any(
        s == segment for s, _ in model.asked | model.gone
    )


async def test_the_guests_write_waits_for_all_that_it_ejects() -> None:
    gates = {1: asyncio.Event(), 5: asyncio.Event()}

    def eject(segment: int, slot: int) -> Awaitable[None]:
        async def gone() -> None:
            await gates[slot].wait()

        return gone()

    registers = SlotRegisters(1)
    registers.on_eject = eject
    for slot in gates:
        registers.ask(0, slot)
    pending = registers.write(0, (1 << 1 | 1 << 5 | 1 << 9).to_bytes(4, "little"))
    assert pending is not None
    task = asyncio.ensure_future(pending)
    for gate in gates.values():
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
    await asyncio.wait_for(task, HANGS)
    assert registers.write(0, b"\xff" * 4) is None


@pytest.mark.parametrize("change", [{"added": [0]}, {"added": [0, 0, 1 << 32]}, {"more": 1}])
def test_damaged_state_is_refused_and_changes_nothing(change: dict[str, object]) -> None:
    registers = SlotRegisters(SEGMENTS)
    registers.ask(2, 7)
    before = registers.save()
    with pytest.raises(SnapshotError, match="slots"):
        registers.load({**before, **change})
    assert registers.save() == before
