"""A guest's PCI devices that are saved at any moment and go on elsewhere: the guest cannot tell."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.errors import GuestError, SnapshotError
from aiovmm.pci.capabilities import VirtioCapType
from aiovmm.pci.virtio_driver import VirtioPciDriver
from aiovmm.virtqueue.chain import Chain
from aiovmm.virtqueue.device import VirtioDevice
from aiovmm.virtqueue.driver import Arena, DriverQueue
from aiovmm.virtqueue.features import EVENT_IDX, RING_FEATURES
from aiovmm.virtqueue.queue import Queue
from aiovmm.virtqueue.status import Status
from tests.pci.echo import until
from tests.saving.moving import Traveller
from tests.saving.text import damaged, through_text

FEATURES = (RING_FEATURES, RING_FEATURES & ~EVENT_IDX)


class Slow(VirtioDevice):
    """Answers each request reversed, when it is told to, and in any order; has a register of its own."""

    device_id = 4
    name = "slow"
    queue_sizes = (16, 4)

    def __init__(self, held_back: bool = False) -> None:
        self.register = 0
        self.held_back = held_back  # requests wait in `held` until they are answered
        self.held: list[Chain] = []
        self.queue: Queue | None = None
        self.resets = 0

    def read_config(self, offset: int, size: int) -> bytes:
        return self.register.to_bytes(8, "little")[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        self.register = int.from_bytes(data, "little")

    async def run(self, queues: list[Queue], features: int) -> None:
        self.queue = queues[0]
        try:
            async for chain in queues[0]:
                self.held.append(chain)
                if not self.held_back:
                    self.answer(0)
        finally:
            self.held.clear()

    def answer(self, which: int) -> None:
        chain = self.held.pop(which % len(self.held))
        text = chain.read_all()
        if text == b"break":
            raise GuestError("broken on demand")
        chain.write(text[::-1])
        assert self.queue is not None
        self.queue.push(chain)

    def reset(self) -> None:
        self.register = 0
        self.resets += 1

    def save(self) -> dict[str, Any]:
        return {"register": self.register}

    def load(self, state: dict[str, Any]) -> None:
        self.register = state["register"]


STEP = st.one_of(
    st.tuples(st.sampled_from(["ask", "indirect", "quiet"]), st.integers(1, 3)),
    st.tuples(st.just("answer"), st.integers(0, 15)),
    st.tuples(st.sampled_from(["move", "pause", "take", "turn"]), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEP, max_size=40),
    features=st.sampled_from(FEATURES),
    size=st.sampled_from([4, 16]),
    msix=st.booleans(),
)
async def test_no_request_is_lost_and_none_answered_twice(
    steps: list[tuple[str, int]], features: int, size: int, msix: bool
) -> None:
    """Requests that are answered in any order, while the devices move at any moment: indices wrap in the smallest ring."""
    async with Traveller(lambda: [Slow(held_back=True)]) as guest:
        driver = guest.drivers[0]
        await driver.start(features, [size, 4], msix=msix)
        queue = driver.queues[0]
        asked: Counter[bytes] = Counter()
        answered: Counter[bytes] = Counter()
        number = 0
        for step, value in [*steps, ("end", 0)]:
            device = guest.devices[0]
            assert isinstance(device, Slow)
            if step in ("ask", "indirect", "quiet") and len(queue.free) >= value + 1:
                number += 1
                text = b"%06d" % number
                asked[text] += 1
                queue.add([text], [6 // value] * value, indirect=step == "indirect")
                if step != "quiet":
                    queue.kick()
            elif step == "answer" and device.held:
                device.answer(value)
            elif step == "move":
                await guest.move()
            elif step == "pause":
                await guest.root.suspend()
                await guest.root.unsuspend()
            elif step == "turn":
                await asyncio.sleep(0)
            elif step == "end":
                queue.kick()
                await until(partial(_has_all, device, queue))
                while device.held:
                    device.answer(0)
            answered.update(used.data[::-1] for used in queue.poll())
        assert guest.errors == []
        assert answered == asked


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from(["config", "bar"]), st.integers(0, 0x3000), st.sampled_from([1, 2, 4]), st.integers(0)
        ),
        max_size=40,
    ),
    started=st.booleans(),
)
async def test_all_registers_read_as_they_did(accesses: list[tuple[str, int, int, int]], started: bool) -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        if started:
            await driver.start()
        for kind, offset, size, value in accesses:
            at = offset % 256 if kind == "config" else offset % 64 if offset & 1 else 0x8000 + offset % 64
            data = (value % (1 << 8 * size)).to_bytes(size, "little")
            base = (
                0xE800_0000 + (1 << 15)
                if kind == "config"
                else guest.functions[0].bars[0].address(guest.functions[0].config)
            )
            done = guest.services.write(base + at, data)
            if done is not None:
                await done
        before = registers(guest)
        await guest.move()
        assert registers(guest) == before


def _has_all(device: Slow, queue: DriverQueue) -> bool:
    return len(device.held) == queue.outstanding


def registers(guest: Traveller) -> list[bytes]:
    """Configuration space, and what of the BAR can be read without doing something, where it is."""
    function = guest.functions[0]
    shown = [guest.services.read(0xE800_8000 + at, 4) for at in range(0, 0x100, 4) if at not in _live(function)]
    bar = function.bars[0].decoded(function.config)
    if bar is not None:
        places = (*range(0, 0x40, 4), *range(0x2000, 0x2010, 4), 0x7000, *range(0x8000, 0x8030, 4))
        shown += [guest.services.read(bar + at, 4) for at in places]
    return [*shown, bytes([function._isr.bits]), str(guest.services.pins[0].asserted).encode()]


def _live(function: Any) -> set[int]:
    return {at for at, _ in function.live_registers}


async def test_a_masked_vector_keeps_its_interrupt() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        await driver.start()
        await driver.pci.program_vector(driver.function, 1, 0xFEE00000, driver.first_vector + 1, masked=True)
        driver.queues[0].add([b"abc"], [3])
        driver.queues[0].kick()
        await until(lambda: bool(guest.functions[0]._vectors.pending_bits()[0]))
        await guest.move()
        assert driver.queues[0].irq.pulses == 0
        await driver.pci.program_vector(driver.function, 1, 0xFEE00000, driver.first_vector + 1)
        assert driver.queues[0].irq.pulses == 1
        assert [used.data for used in driver.queues[0].poll()] == [b"cba"]


async def test_a_pin_that_was_asserted_is() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        await driver.start(msix=False)
        driver.queues[0].add([b"abc"], [3])
        driver.queues[0].kick()
        await until(lambda: guest.services.pins[0].asserted)
        await guest.move()
        assert guest.services.pins[0].asserted
        assert driver.load(VirtioCapType.ISR, 0, 1) == 1
        assert not guest.services.pins[0].asserted


async def test_a_kick_that_nobody_heard_is_heard_afterwards() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        await driver.start()
        state = await guest.leave()
        driver.queues[0].add([b"abc"], [3])  # as if it had come while the guest was stopped
        await guest.arrive(state)
        await guest.root.unsuspend()
        assert [used.data for used in await driver.queues[0].used()] == [b"cba"]


async def moved_broken(guest: Traveller) -> VirtioPciDriver:
    """Its device has broken, and then moved; the driver."""
    driver = guest.drivers[0]
    await driver.start()
    driver.queues[0].add([b"break"], [3])
    driver.queues[0].kick()
    await driver.config_interrupt()
    await guest.move()
    return driver


async def test_a_broken_device_stays_broken_until_it_is_reset() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = await moved_broken(guest)
        assert driver.status & Status.NEEDS_RESET
        await driver.start()
        device = slow_of(guest)
        assert device.resets == 1, "the device has had a driver, elsewhere"
        assert await driver.request(0, [b"on"], [2]) == b"no"


async def test_a_driver_of_a_device_that_came_broken_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(Slow, "_notify_driver", staticmethod(told.append))
    async with Traveller(lambda: [Slow()]) as guest:
        driver = await moved_broken(guest)
        told.clear()
        await driver.start()
        for _ in range(2):
            await guest.root.suspend()
            await guest.root.unsuspend()
        assert told == [False, True]


@pytest.mark.parametrize(("register", "value", "size"), [(0x18, 3, 2), (0x30, 0xFFFFF000, 4)], ids=["size", "place"])
async def test_a_device_whose_last_queue_cannot_be_goes_on_elsewhere_until_it_is_reset(
    register: int, value: int, size: int
) -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        await driver.reset()
        await driver.negotiate()
        driver.msix = False
        driver.queues = [await driver._setup_queue(index, 4) for index in (0, 1)]
        await driver.set_common(register, value, size)
        for index in (0, 1):
            await driver.set_common(0x16, index, 2)
            await driver.set_common(0x1C, 1, 2)
        await driver.set_common(0x14, driver.status | Status.DRIVER_OK, 1)
        for _ in range(2):
            assert driver.status & Status.NEEDS_RESET
            await guest.move()
        await driver.start()
        assert await driver.request(0, [b"on"], [2]) == b"no"


@pytest.mark.parametrize(("last_avail", "used_idx"), [(1, 0), (0, 0xFFFF)])
async def test_chains_that_would_never_come_back_are_refused(last_avail: int, used_idx: int) -> None:
    """Such a guest could be restored, and never be saved again."""
    async with Traveller(lambda: [Slow()]) as guest:
        await guest.drivers[0].start()
        state = await guest.leave()
        position = state["segments"][0]["functions"][1]["state"]["queues"][0]
        position["last_avail"], position["used_idx"] = last_avail, used_idx
        await guest._build()
        with pytest.raises(SnapshotError, match=r"slow: queues\[0\]: 1 chains were taken that do not come again"):
            await guest.root.load(state)


async def test_a_half_configured_driver_goes_on() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        driver = guest.drivers[0]
        await driver.reset()
        await driver.negotiate()
        driver.queues = [await driver._setup_queue(0, 8)]
        await guest.move()
        assert driver.common(0x18, 2) == 8
        for index in (0, 1):
            await driver.set_common(0x16, index, 2)
            if index == 0:
                await driver.set_common(0x1C, 1, 2)
        await driver.set_common(0x14, driver.status | Status.DRIVER_OK, 1)
        driver.queues[0].add([b"on"], [2])
        driver.queues[0].kick()
        await until(lambda: bool(guest.devices[0].queue))  # type: ignore[attr-defined]
        await until(lambda: bool(driver.queues[0]._last_used != 0 or driver.queues[0].poll()))


async def test_bars_that_the_guest_has_put_over_each_other_stay_so() -> None:
    """The first to come has the addresses, whoever is asked first when they are loaded."""
    async with Traveller(lambda: [Slow(), Slow(), Slow()]) as guest:
        pci = guest.drivers[0].pci
        place = guest.functions[2].bars[0].address(guest.functions[2].config)
        await pci.write(1, 0x10, place & 0xFFFFFFFF)
        await pci.write(1, 0x14, place >> 32)
        await pci.write(2, 0x10, place & 0xFFFFFFFF)
        await pci.write(2, 0x14, place >> 32)
        for _ in range(2):
            found = guest.services.bus.find(1, place, 4)  # type: ignore[arg-type]
            assert found is not None
            assert found.device is guest.functions[2].regions[0].device
            await guest.move()
        await pci.write(3, 4, 0, 2)
        for _ in range(2):
            found = guest.services.bus.find(1, place, 4)  # type: ignore[arg-type]
            assert found is not None
            assert found.device is guest.functions[0].regions[0].device
            await guest.move()


async def test_a_device_without_state_refuses_by_name_and_all_go_on() -> None:
    class Bare(VirtioDevice):
        device_id = 4
        name = "mine"

        async def run(self, queues: list[Queue], features: int) -> None:
            async for chain in queues[0]:
                queues[0].push(chain)

    async with Traveller(lambda: [Slow(), Bare()]) as guest:
        for driver in guest.drivers:
            await driver.start()
        with pytest.raises(SnapshotError, match=r"mine cannot be in a snapshot: it has no save\(\) and load\(\)"):
            await guest.root.suspend()
        await guest.root.unsuspend()
        assert await guest.drivers[0].request(0, [b"on"], [2]) == b"no"
        await guest.drivers[1].request(0, [b"on"], [2])


async def test_a_device_whose_requests_do_not_end_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = asyncio.Event()

    class Stuck(Slow):
        async def run(self, queues: list[Queue], features: int) -> None:
            try:
                await super().run(queues, features)
            finally:
                if self.suspending:
                    await may_end.wait()

    monkeypatch.setattr("aiovmm.pci.saved.suspend_all.__defaults__", (0.05,))
    async with Traveller(lambda: [Stuck(), Slow()]) as guest:
        for driver in guest.drivers:
            await driver.start()
        with pytest.raises(SnapshotError, match=r"stuck|slow: the host has not ended its requests for 0.05 s"):
            await guest.root.suspend()
        await guest.root.unsuspend()  # does not wait for it
        assert await guest.drivers[1].request(0, [b"on"], [2]) == b"no"
        may_end.set()
        assert await guest.drivers[0].request(0, [b"on"], [2]) == b"no"
        assert guest.errors == []


async def test_another_machine_is_refused_by_what_differs() -> None:
    async with Traveller(lambda: [Slow()]) as guest:
        state = await guest.leave()
        guest.make = lambda: [Slow(), Slow()]
        await guest._build()
        with pytest.raises(SnapshotError, match="slow is in slot 2 of PCI segment 0, where nothing was"):
            await guest.root.load(state)
        await guest._end()
        guest.make = list
        await guest._build()
        with pytest.raises(SnapshotError, match="slow was in slot 1 of PCI segment 0, where nothing is"):
            await guest.root.load(state)


def slow_of(guest: Traveller) -> Slow:
    (device,) = guest.devices
    assert isinstance(device, Slow)
    return device


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_request_that_the_driver_has_given_up_in_the_middle_is_asked_again(taken: int) -> None:
    """`run` was cancelled while it worked on requests, and later ones had been answered."""
    async with Traveller(lambda: [Slow(held_back=True)]) as guest:
        driver = guest.drivers[0]
        await driver.start(queue_sizes=[8, 4])
        for number in range(3):
            driver.queues[0].add([b"%d" % number], [1])
        driver.queues[0].kick()
        device = slow_of(guest)
        await until(lambda: len(device.held) == 3)
        device.answer(taken)
        await guest.move()
        device = slow_of(guest)
        await until(lambda: len(device.held) == 2)
        device.answer(1)
        await guest.move()
        device = slow_of(guest)
        await until(lambda: len(device.held) == 1)
        device.answer(0)
        answers = await driver.queues[0].used(3)
        assert sorted(used.data for used in answers) == [b"0", b"1", b"2"]


@settings(max_examples=120, deadline=None)
@given(st.data())
async def test_a_damaged_state_is_refused_or_its_guests_own_trouble(data: st.DataObject) -> None:
    """Positions ahead of rings, BARs over memory, vectors out of range, features that were not offered, rings anywhere: whatever
    a state says, nothing but this guest suffers, and a reset heals it."""
    async with Traveller(lambda: [Slow(), Slow()]) as guest:
        for driver in guest.drivers[: data.draw(st.integers(0, 2))]:
            await driver.start(data.draw(st.sampled_from(FEATURES)), [4, 4], msix=data.draw(st.booleans()))
            driver.queues[0].add([b"abc"], [3])
            driver.queues[0].kick()
            for _ in range(data.draw(st.integers(0, 8))):
                await asyncio.sleep(0)
            driver.queues[0].poll()
        state = data.draw(damaged(await guest.leave()))
        await guest._build()
        try:
            await guest.root.load(state)
        except SnapshotError as exc:
            told = str(exc)
            assert told
            return
        await guest.root.unsuspend()
        for _ in range(5):
            await asyncio.sleep(0)
        again = through_text(await _once_more(guest))
        assert again
        for slot, driver in enumerate(guest.drivers, 1):
            await driver.pci.write(slot, 4, 0, 2)
            await driver.pci.write(slot, 0x10, 0xC8000000 + (slot << 20))
            await driver.pci.write(slot, 0x14, 0)
        for slot, driver in enumerate(guest.drivers, 1):
            driver.structures.clear()
            await driver.probe()
            driver.arena, driver.queues = Arena(0x1000 + (slot << 20), 1 << 20), []
            await driver.start()
            assert await driver.request(0, [b"on"], [2]) == b"no"


async def _once_more(guest: Traveller) -> Any:
    await guest.root.suspend()
    state = guest.root.save()
    await guest.root.unsuspend()
    return state
