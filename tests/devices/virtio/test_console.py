"""What a guest's driver and the program at the console see of virtio-console."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiovmm.console import Console
from aiovmm.devices.timer import CallLater, Timer
from aiovmm.devices.virtio.console import ConsoleDevice, output
from aiovmm.devices.virtio.console.device import PRINTED, QUIET
from aiovmm.devices.virtio.console.output import PIECE, LookPolicy
from aiovmm.errors import ChainError
from aiovmm.memory import PAGE_SIZE
from aiovmm.testing import Descriptor, Harness
from aiovmm.virtqueue.config import QueuePosition
from aiovmm.virtqueue.driver import NEXT, WRITE
from tests.limits import HANGS
from tests.virtqueue.pieces import IOVA, OnePageManyTimes

RX, TX = 0, 1


class Pair:
    """A device with its console, as a VM joins them."""

    def __init__(self, history: int = 64 << 20, call_later: CallLater | None = None) -> None:
        self.console = Console(history=history)
        self.device = ConsoleDevice(self.console.feed, call_later=call_later)
        self.console.connect(self.device)


def offer(h: Harness, count: int, size: int = 4096) -> None:
    for _ in range(count):
        h.queues[RX].add([], [size])
    h.queues[RX].kick()


async def received(h: Harness, size: int, *, refill: int = 0) -> bytes:
    """What the driver gets, giving each buffer back at once if `refill` is its size."""
    data = b""
    async with asyncio.timeout(HANGS):
        while len(data) < size:
            for used in await h.queues[RX].used():
                data += used.data
                if refill:
                    offer(h, 1, refill)
    return data


async def test_buffers_without_room_leave_the_loop_its_turns_however_fast_they_come() -> None:
    """As from a processor that offers the next one as soon as it has the last one back, while somebody types."""
    enough, invited = 1000, [0]
    device = ConsoleDevice(lambda data: None)

    def type_again() -> None:
        invited[-1] += 1
        assert device.receive(b"x") == 0
        offer_one()

    async with Harness(device) as h:

        def offer_one() -> None:
            h.queues[RX].poll()
            if sum(invited) < enough:
                h.queues[RX].add_raw([Descriptor(0x300000, 0, WRITE, 0)])

        device.set_writable_callback(type_again)
        assert device.receive(b"x") == 0
        offer_one()
        h.queues[RX].kick()
        while sum(invited) < enough:
            invited.append(0)
            await asyncio.sleep(0)
    assert max(invited) == 1


async def test_output_arrives_in_order() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        for text in (b"hello ", b"from ", b"hvc0\n"):
            assert await h.request(TX, [text]) == b""
        assert await pair.console.readline() == b"hello from hvc0\n"


async def test_output_is_copied_whole_whatever_its_shape() -> None:
    pair = Pair()
    parts = [os.urandom(n) for n in (1, 5000, 70000, 3, 65536)]
    async with Harness(pair.device) as h:
        h.queues[TX].add(parts[:2])
        h.queues[TX].add(parts[2:], indirect=True)
        h.queues[TX].kick()
        assert [u.length for u in await h.queues[TX].used(2)] == [0, 0]
        assert await pair.console.readexactly(sum(map(len, parts))) == b"".join(parts)


async def test_a_guest_that_goes_on_printing_needs_no_doorbell_and_one_that_pauses_is_woken_for() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        q = h.queues[TX]
        for round_ in range(3):
            for i in range(50):
                q.add([b"%d " % i])
                assert q.kick() == (i == 0)  # the device looks at the ring by itself
                await q.used()
            for _ in range(100):
                await asyncio.sleep(0)  # it has gone to sleep
            assert q.kicks == round_ + 1
        assert pair.console.history.count(b"49 ") == 3


async def test_a_guest_that_goes_on_printing_wakes_its_readers_seldom_and_one_that_pauses_is_read_at_once() -> None:
    pieces: list[bytes] = []
    async with Harness(ConsoleDevice(pieces.append)) as h:
        q = h.queues[TX]
        for i in range(100):
            q.add([b"%d " % i])
            q.kick()
            await q.used()
            if i == 0:
                assert pieces == [b"0 "]
        for _ in range(20):
            await asyncio.sleep(0)
        assert b"".join(pieces) == b"".join(b"%d " % i for i in range(100))
        assert len(pieces) < 50


async def test_output_that_is_held_back_is_not_lost_by_a_reset_or_a_malformed_chain() -> None:
    pieces: list[bytes] = []
    async with Harness(ConsoleDevice(pieces.append)) as h:
        await h.request(TX, [b"first "])
        await h.request(TX, [b"second "])
        await h.reset()
        assert b"".join(pieces) == b"first second "
        await h.start()
        await h.request(TX, [b"third "])
        await h.request(TX, [b"fourth "])
        h.queues[TX].add_raw([Descriptor(0x300000, 16, NEXT, 9999)])
        h.queues[TX].kick()
        assert isinstance(await h.broken(), ChainError)
        assert b"".join(pieces) == b"first second third fourth "


def test_looking_within_native_code_is_tried_seldom_where_it_is_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "look_ns", lambda: 50_000)
    policy = LookPolicy()
    looks = 0
    for _ in range(1000):
        looks += policy.look > 0
        policy.note(found=False)
    assert 0 < looks < 100
    policy.note(found=True)
    assert policy.look == 50_000


def test_nothing_is_looked_for_where_it_cannot_come_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "look_ns", lambda: 0)
    assert LookPolicy().look == 0


async def test_a_guest_that_prints_now_and_then_is_seldom_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver waits for interrupts, here: whatever is looked for within native code does not come."""
    looks: list[int] = []

    class Noted(LookPolicy):
        def note(self, found: bool) -> None:
            looks.append(self.look)
            super().note(found)

    monkeypatch.setattr(output, "look_ns", lambda: 1000)
    monkeypatch.setattr(output, "LookPolicy", Noted)
    async with Harness(ConsoleDevice(lambda data: None)) as h:
        for _ in range(200):
            await h.request(TX, [b"a line\n"])
    assert len(looks) == 200
    assert 0 < sum(look > 0 for look in looks) < 40


@pytest.mark.parametrize("queue", [RX, TX])
async def test_a_chain_in_very_many_pieces_behind_a_translation(queue: int) -> None:
    pair = Pair()
    h = Harness(pair.device)
    h.device_memory = OnePageManyTimes(h.memory, 0x300000, 2000)
    h.memory.write(0x300000, b"x" * PAGE_SIZE)
    async with h:
        pair.console.write(b"typed")
        h.queues[queue].add_raw([Descriptor(IOVA, 2000 * PAGE_SIZE, WRITE if queue == RX else 0)])
        h.queues[queue].kick()
        (used,) = await h.queues[queue].used()
        if queue == RX:
            assert used.length == 5
            assert h.memory.read(0x300000, 6) == b"typedx"
        else:
            assert await pair.console.readexactly(2000 * PAGE_SIZE) == b"x" * 2000 * PAGE_SIZE


async def test_a_chain_is_back_before_its_output_is_looked_at() -> None:
    """The driver spins until then."""
    seen: list[int] = []
    harness: list[Harness] = []
    printed = asyncio.Event()

    def show(data: bytes) -> None:
        seen.append(len(harness[0].queues[TX].poll()))
        printed.set()

    async with Harness(ConsoleDevice(show)) as h:
        harness.append(h)
        h.queues[TX].add([b"a"])
        h.queues[TX].add([b"b"])
        h.queues[TX].kick()
        await asyncio.wait_for(printed.wait(), HANGS)
    assert seen == [2]


async def test_overlapping_descriptors_are_printed_in_bounded_pieces_with_the_loop_free_in_between() -> None:
    """100 descriptors over the same 1 MiB: 100 MiB of output from a small guest."""
    pieces: list[int] = []
    device = ConsoleDevice(lambda data: pieces.append(len(data)))
    async with Harness(device, memory_size=8 << 20) as h:
        q = h.queues[TX]
        q.add_raw([Descriptor(0x300000, 1 << 20, NEXT, i + 1) for i in range(99)] + [Descriptor(0x300000, 1 << 20)])
        q.kick()
        turns = 0
        async with asyncio.timeout(HANGS):
            while not q.poll():
                await asyncio.sleep(0)
                turns += 1
    assert sum(pieces) == 100 << 20
    assert max(pieces) <= PIECE
    assert turns >= 1600


async def test_a_chain_with_room_only_is_returned_and_prints_nothing() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        assert await h.request(TX, [], [16]) == b""
        assert await h.request(TX, [b"x"], [16]) == b""
        assert pair.console.unread == b"x"


async def test_input_goes_into_the_drivers_buffers() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        offer(h, 4, 16)
        pair.console.write(b"ls\n")
        (used,) = await h.queues[RX].used()
        assert used.data == b"ls\n"
        pair.console.write(b"longer than one buffer\n")
        assert await received(h, 23) == b"longer than one buffer\n"


async def test_input_for_many_buffers_is_one_interrupt() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        offer(h, 32, 64)
        for _ in range(20):
            await asyncio.sleep(0)
        data = os.urandom(32 * 64)
        pair.console.write(data)
        await asyncio.wait_for(h.queues[RX].irq.wait(), HANGS)
        assert b"".join(used.data for used in h.queues[RX].poll()) == data
        assert h.queues[RX].irq.pulses == 1


async def test_a_malformed_receive_buffer_takes_no_input_with_it() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        offer(h, 1, 3)
        h.queues[RX].put(9, Descriptor(0x300000, 16, NEXT | WRITE, 9999))
        h.queues[RX].offer(9)
        h.queues[RX].kick()
        pair.console.write(b"abcdef")
        assert isinstance(await h.broken(), ChainError)
        assert h.queues[RX].poll()[0].data == b"abc"
        await h.reset()
        await h.start()
        assert await h.request(RX, [], [16]) == b"def"


async def test_input_waits_for_the_driver_and_for_its_buffers() -> None:
    pair = Pair()
    pair.console.write(b"typed before there was a guest")
    async with Harness(pair.device) as h:
        for _ in range(10):
            await asyncio.sleep(0)
        assert pair.console.input_waiting == 30
        offer(h, 1, 5)
        assert await received(h, 5) == b"typed"
        offer(h, 5, 100)
        assert await received(h, 25) == b" before there was a guest"
        assert pair.console.input_waiting == 0


async def test_a_guest_that_does_not_read_holds_the_writer_back() -> None:
    pair = Pair()
    data = os.urandom(256 << 10)
    async with Harness(pair.device) as h:
        sender = asyncio.ensure_future(pair.console.send(data))
        offer(h, 2)
        assert await received(h, 8192) == data[:8192]
        for _ in range(50):
            await asyncio.sleep(0)
        assert not sender.done()
        assert pair.console.input_waiting <= 64 << 10
        offer(h, 20)
        assert await received(h, len(data) - 8192, refill=4096) == data[8192:]
        await sender


async def test_input_is_kept_over_a_reset_and_none_is_doubled() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        offer(h, 1, 3)
        pair.console.write(b"abcdef")
        assert await received(h, 3) == b"abc"
        await h.reset()
        pair.console.write(b"ghi")
        await h.start()
        offer(h, 1, 100)
        assert await received(h, 6) == b"defghi"


async def test_buffers_that_wait_for_input_when_the_device_stops_are_not_lost() -> None:
    """The queue can be resumed where it stands."""
    pair = Pair()
    async with Harness(pair.device) as h:
        offer(h, 3, 16)
        queue = h.runner.queues[RX]
        for _ in range(50):
            await asyncio.sleep(0)
        await h.reset()
        assert queue.position == QueuePosition(0, 0, told=True)


class Timers:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.calls.append((delay, callback))
        return Cancel(self.calls, self.calls[-1])

    def pass_(self) -> list[float]:
        """All that is waited for comes; how long that took."""
        calls = self.calls[:]
        self.calls.clear()
        for _, callback in calls:
            callback()
        return [delay for delay, _ in calls]


@dataclass
class Cancel:
    calls: list[tuple[float, Callable[[], None]]]
    call: tuple[float, Callable[[], None]]

    def cancel(self) -> None:
        if self.call in self.calls:
            self.calls.remove(self.call)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class TestWhileLinuxSetsThePortUp:
    """It takes what it finds in its buffers, and throws it away, until the port has a terminal; then it may print."""

    async def test_input_comes_after_the_first_output(self) -> None:
        timers = Timers()
        pair = Pair(call_later=timers.call_later)
        pair.console.write(b"typed ")
        async with Harness(pair.device) as h:
            for at in range(3):
                offer(h, 1, 64)
                pair.console.write(b"%d " % at)
                await turns()
                assert h.queues[RX].poll() == []
            assert await h.request(TX, [b"init\n"]) == b""
            assert await pair.console.readline() == b"init\n"
            assert h.queues[RX].poll() == []  # another processor may not have joined the port yet
            first = timers.calls[:]
            assert await h.request(TX, [b"more\n"]) == b""
            offer(h, 1, 64)
            await turns()
            assert timers.calls == first, "who goes on printing puts nothing off"
            assert timers.pass_() == [PRINTED]
            assert await received(h, 12) == b"typed 0 1 2 "
            offer(h, 1, 64)
            pair.console.write(b"at once")
            assert await received(h, 7) == b"at once"
            assert await h.request(TX, [b"x"]) == b""
        assert timers.calls == []

    async def test_a_guest_that_prints_nothing_gets_it_when_it_has_been_quiet(self) -> None:
        timers = Timers()
        pair = Pair(call_later=timers.call_later)
        pair.console.write(b"typed")
        async with Harness(pair.device) as h:
            offer(h, 2, 64)
            await turns()
            assert h.queues[RX].poll() == []
            assert timers.pass_() == [QUIET]
            assert await received(h, 5) == b"typed"
            pair.console.write(b"at once")
            assert await received(h, 7) == b"at once"

    async def test_nobody_types_before_it_has_been_quiet(self) -> None:
        timers = Timers()
        pair = Pair(call_later=timers.call_later)
        async with Harness(pair.device) as h:
            offer(h, 2, 64)
            await turns()
            assert timers.pass_() == [QUIET]
            pair.console.write(b"at once")
            assert await received(h, 7) == b"at once"

    async def test_a_driver_that_comes_again_is_waited_for_again(self) -> None:
        timers = Timers()
        pair = Pair(call_later=timers.call_later)
        async with Harness(pair.device) as h:
            for _ in range(3):
                assert await h.request(TX, [b"x"]) == b""
                await turns()
                assert timers.pass_() == [PRINTED]
                pair.console.write(b"abc")
                assert await h.request(RX, [], [3]) == b"abc"
                await h.reset()
                assert timers.calls == []
                pair.console.write(b"for the next one")
                await h.start()
                offer(h, 1, 64)
                await turns()
                assert h.queues[RX].poll() == []
                assert timers.pass_() == [QUIET]
                assert await received(h, 16) == b"for the next one"
                await h.reset()
                await h.start()

    async def test_a_malformed_buffer_is_told_of_meanwhile(self) -> None:
        timers = Timers()
        pair = Pair(call_later=timers.call_later)
        pair.console.write(b"abc")
        async with Harness(pair.device) as h:
            h.queues[RX].put(9, Descriptor(0x300000, 16, NEXT | WRITE, 9999))
            h.queues[RX].offer(9)
            h.queues[RX].kick()
            assert isinstance(await h.broken(), ChainError)
        assert timers.calls == []


async def test_an_empty_receive_buffer_goes_back_empty() -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        pair.console.write(b"x")
        assert await h.request(RX, [b"readable only"]) == b""
        assert await h.request(RX, [], [1]) == b"x"


async def test_the_size_and_its_change_are_told() -> None:
    pair = Pair()
    assert pair.device.read_config(0, 12) == struct.pack("<HHII", 80, 24, 1, 0)
    async with Harness(pair.device) as h:
        await asyncio.wait_for(h.config_irq.wait(), HANGS)  # Linux does not look at the size before
        h.config_irq.clear()
        pair.console.resize(132, 43)
        await asyncio.wait_for(h.config_irq.wait(), HANGS)
        assert struct.unpack("<HH", pair.device.read_config(0, 4)) == (132, 43)
        pair.console.resize(132, 43)
        assert h.config_irq.pulses == 2
        await h.reset()
        await h.start()
        assert struct.unpack("<H", pair.device.read_config(2, 2)) == (43,)


def test_a_size_that_is_known_before_the_device_is_there() -> None:
    console = Console()
    console.resize(100, 30)
    device = ConsoleDevice(console.feed)
    console.connect(device)
    assert struct.unpack("<HH", device.read_config(0, 4)) == (100, 30)


def test_sizes_that_no_terminal_has_are_bounded() -> None:
    device = ConsoleDevice(lambda data: None)
    device.resize(1 << 20, -1)
    assert struct.unpack("<HH", device.read_config(0, 4)) == (0xFFFF, 0)


@pytest.mark.parametrize("offset", range(16))
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_any_read_of_the_configuration_is_answered_in_full(offset: int, size: int) -> None:
    assert len(ConsoleDevice(lambda data: None).read_config(offset, size)) == size


def test_an_emergency_write_prints_one_character_at_any_time() -> None:
    printed: list[bytes] = []
    device = ConsoleDevice(printed.append)
    device.write_config(8, struct.pack("<I", ord("!")))
    device.write_config(8, b"?")
    device.write_config(0, b"\1\0\1\0")  # read-only
    device.write_config(9, b"x")
    assert printed == [b"!", b"?"]
    assert device.read_config(0, 4) == struct.pack("<HH", 80, 24)


@pytest.mark.parametrize("queue", [RX, TX])
async def test_a_malformed_chain_breaks_the_device_until_reset(queue: int) -> None:
    pair = Pair()
    async with Harness(pair.device) as h:
        h.queues[queue].add_raw([Descriptor(0x300000, 16, NEXT, 9999)])
        h.queues[queue].kick()
        assert isinstance(await h.broken(), ChainError)
        pair.console.write(b"waits")
        await h.reset()
        await h.start()
        await h.request(TX, [b"again"])
        assert await h.request(RX, [], [9]) == b"waits"
        assert pair.console.unread == b"again"


async def test_no_output_is_lost_when_the_device_is_reset_200_times_under_load() -> None:
    """What the device has returned, it has printed; input that went in came out once."""
    pair = Pair()
    rng = random.Random(7)
    sent = got = 0
    before = len(os.listdir("/proc/self/fd"))
    async with Harness(pair.device, memory_size=16 << 20) as h:
        for _ in range(200):
            done = 0
            start = pair.console.history_lost + len(pair.console.history)
            for _ in range(rng.randrange(1, 30)):
                h.queues[TX].add([bytes(rng.randrange(1, 3000))])
            h.queues[TX].kick()
            offer(h, rng.randrange(20), 64)
            if pair.console.input_waiting < 10000:
                n = rng.randrange(2000)
                pair.console.write(bytes(n))
                sent += n
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
            await h.reset()
            done = len(h.queues[TX].poll())
            printed = pair.console.history_lost + len(pair.console.history) - start
            assert (printed > 0) == (done > 0)
            got += sum(u.length for u in h.queues[RX].poll())
            assert got + pair.console.input_waiting == sent
            await h.start()
        await h.request(TX, [b"still here"])
    assert pair.console.history.endswith(b"still here")
    assert len(os.listdir("/proc/self/fd")) < before + 2


@settings(max_examples=30, deadline=None)
@given(
    printed=st.lists(st.tuples(st.lists(st.binary(min_size=1, max_size=4000), min_size=1, max_size=5), st.booleans())),
    data=st.binary(max_size=3000),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=20),
    start=st.sampled_from([0, 65530]),
)
async def test_both_directions_are_streams(
    printed: list[tuple[list[bytes], bool]], data: bytes, sizes: list[int], start: int
) -> None:
    pair = Pair()
    async with Harness(pair.device, start=start, shuffle=random.Random(0), memory_size=8 << 20) as h:
        pair.console.write(data)
        for parts, indirect in printed[:20]:
            h.queues[TX].add(parts, indirect=indirect)
            h.queues[TX].kick()
        for size in sizes:
            h.queues[RX].add([], [size])
        h.queues[RX].kick()
        expected = min(len(data), sum(sizes))
        if expected:
            assert await received(h, expected) == data[:expected]
        await h.queues[TX].used(len(printed[:20]))
    assert pair.console.history == b"".join(b"".join(parts) for parts, _ in printed[:20])
