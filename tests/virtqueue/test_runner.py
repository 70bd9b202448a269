"""A device's life under its runner: whatever happens in `run`, the driver sees NEEDS_RESET and can start over."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Sequence

import pytest

from aiovmm.errors import ChainError, GuestFault, HostError, StateError
from aiovmm.testing import Descriptor, Harness
from aiovmm.virtqueue import DeviceRunner, Queue, QueuePosition, Status, VirtioDevice


class Device(VirtioDevice):
    """Echoes; `fault` is raised at the first chain; `slow_stop` is awaited when it is stopped, as host I/O in flight is."""

    device_id = 42
    name = "test device"
    queue_sizes = (16, 16)

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.slow_stop: asyncio.Event | None = None
        self.running = 0
        self.resets = 0
        self.stopped = 0

    async def run(self, queues: list[Queue], features: int) -> None:
        self.running += 1
        try:
            async for chain in queues[0]:
                if self.fault is not None:
                    raise self.fault
                chain.write(chain.read_all())
                queues[0].push(chain)
        finally:
            if self.slow_stop is not None:
                await self.slow_stop.wait()
            self.running -= 1
            self.stopped += 1

    def reset(self) -> None:
        self.resets += 1


def poke(h: Harness) -> None:
    h.queues[0].add([b"x"], [1])
    h.queues[0].kick()


async def test_kicks_of_a_broken_device_wake_nobody() -> None:
    device = Device()
    device.fault = ValueError()
    async with Harness(device) as h:
        await asyncio.sleep(0)  # the device waits for its first kick
        poke(h)
        await h.broken()
        await asyncio.sleep(0)
        seen = h.runner.counters()[0].kicks
        for _ in range(5):
            h.queues[0].kick(force=True)
            await asyncio.sleep(0)
        assert h.runner.counters()[0].kicks == seen


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("a bug"),
        HostError("reading", 5),
        ChainError("bad"),
        ExceptionGroup("many", [OSError(5, "io"), ValueError()]),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_what_run_raises_breaks_that_device_only(fault: Exception) -> None:
    device = Device()
    device.fault = fault
    async with Harness(device) as h:
        poke(h)
        assert await h.broken() is fault
        assert h.negotiation.status & Status.NEEDS_RESET
        assert h.config_irq.pulses == 1
        assert not h.runner.live
        device.fault = None
        await h.reset()
        await h.start()
        assert await h.request(0, [b"alive"], [5]) == b"alive"


class Two(Device):
    """A task for each queue; which of them have a bug."""

    def __init__(self, bugs: Sequence[int] = ()) -> None:
        super().__init__()
        self.bugs = bugs

    async def run(self, queues: list[Queue], features: int) -> None:
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(self.serve(queue))

    async def serve(self, queue: Queue) -> None:
        async for chain in queue:
            if queue.index in self.bugs:
                raise ValueError("a bug")
            chain.read(100)


@pytest.mark.parametrize(
    ("poked", "bugs", "named"),
    [((0,), (), ChainError), ((0, 1), (), ChainError), ((0, 1), (1,), ValueError)],
    ids=["one", "two at once", "a bug beside a guest's fault"],
)
async def test_one_error_of_a_device_with_many_tasks_is_named(
    poked: Sequence[int], bugs: Sequence[int], named: type[Exception]
) -> None:
    async with Harness(Two(bugs)) as h:
        await asyncio.sleep(0)
        for i in poked:
            h.queues[i].add([b"x"], [1])
            h.queues[i].kick()
        error = await h.broken()
        assert isinstance(error, named)
        assert not isinstance(error, ExceptionGroup)


async def test_counters_go_on_over_resets() -> None:
    async with Harness(Device()) as h:
        for _ in range(3):
            await h.request(0, [b"x"], [1])
            await h.reset()
            await h.start()
        first, second = h.runner.counters()
        assert (first.popped, first.pushed, first.interrupts) == (3, 3, 3)
        assert second.popped == 0


async def test_a_malformed_chain_breaks_the_device_and_comes_back_unused() -> None:
    async with Harness(Device()) as h:
        h.queues[0].add_raw([Descriptor(0x100000, 16, 1, 0)])
        h.queues[0].kick()
        assert isinstance(await h.broken(), ChainError)
        assert [(u.head, u.length) for u in h.queues[0].poll()] == [(0, 0)]


async def test_rings_outside_memory_break_the_device_at_activation() -> None:
    device = Device()
    async with Harness(device) as h:
        await h.reset()
        wrong = [q.config() for q in h.queues]
        wrong[1].used = 1 << 50
        irqs = [q.irq for q in h.queues]
        await h.runner.activate(wrong, h.features, h._fds, irqs, h.config_irq)
        assert isinstance(h.errors.pop(), GuestFault)
        assert not h.runner.live


async def test_a_cancellation_from_within_breaks_the_device() -> None:
    """A device that waits for something that was cancelled must not just vanish."""
    device = Device()
    device.fault = asyncio.CancelledError()
    async with Harness(device) as h:
        poke(h)
        assert isinstance(await h.broken(), StateError)


async def test_reset_waits_for_io_in_flight() -> None:
    device = Device()
    device.slow_stop = asyncio.Event()
    async with Harness(device) as h:
        await h.request(0, [b"x"], [1])
        resetting = asyncio.create_task(h.reset())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not resetting.done()
        assert h.negotiation.status != 0
        assert device.resets == 0
        device.slow_stop.set()
        await resetting
        assert h.negotiation.status == 0
        assert (device.running, device.resets) == (0, 1)


async def test_a_reset_that_is_cancelled_can_be_done_again() -> None:
    device = Device()
    device.slow_stop = asyncio.Event()
    async with Harness(device) as h:
        await h.request(0, [b"x"], [1])
        first = asyncio.create_task(h.runner.reset())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert device.running == 1
        device.slow_stop.set()
        await asyncio.gather(h.runner.reset(), h.runner.reset())
        assert (device.running, device.resets) == (0, 1)


async def test_a_late_reset_leaves_the_next_activation_alone() -> None:
    async with Harness(Device()) as h:
        await h.request(0, [b"x"], [1])

        async def reload() -> None:
            await h.reset()
            await h.start()

        await asyncio.gather(reload(), h.runner.reset())
        assert await h.request(0, [b"on"], [2]) == b"on"


async def test_reset_is_idempotent_and_activation_is_not() -> None:
    device = Device()
    async with Harness(device) as h:
        with pytest.raises(StateError):
            await h.runner.activate([], 0, [], [], h.config_irq)
        await h.reset()
        await h.reset()
        assert device.resets == 1


async def test_an_error_while_stopping_is_told_and_does_not_stop_the_reset() -> None:
    class Clumsy(Device):
        async def run(self, queues: list[Queue], features: int) -> None:
            try:
                await queues[0].wait()
            finally:
                raise ValueError("cleaning up")

    async with Harness(Clumsy()) as h:
        await asyncio.sleep(0)
        await h.reset()
        assert h.negotiation.status == 0
        assert str(h.errors.pop()) == "cleaning up"


async def test_an_error_in_the_devices_own_reset_is_told() -> None:
    class Clumsy(Device):
        def reset(self) -> None:
            raise ValueError("resetting")

    async with Harness(Clumsy()) as h:
        await h.reset()
        assert h.negotiation.status == 0
        assert str(h.errors.pop()) == "resetting"


async def test_a_stopped_device_goes_on_from_its_positions() -> None:
    device = Device()
    async with Harness(device) as h:
        for i in range(3):
            await h.request(0, [b"%d" % i], [1])
        old = h.runner
        task = old._task
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
        positions = old.positions()
        assert positions[0] == QueuePosition(3, 3, told=True)
        configs = [q.config() for q in h.queues]
        h.runner = DeviceRunner(device, h.memory, asyncio.create_task)
        await h.runner.activate(configs, h.features, h._fds, [q.irq for q in h.queues], h.config_irq, positions)
        await old.reset()
        assert await h.request(0, [b"on"], [2]) == b"on"


async def test_the_defaults_of_a_device_are_harmless() -> None:
    device = Device()
    assert device.read_config(0, 8) == bytes(8)
    device.write_config(0, b"x")
    device.config_changed()
    assert device.accepts(0)


@pytest.mark.parametrize("error", [RuntimeError, StateError])
async def test_a_task_group_that_ends_refuses_the_device_quietly(error: type[Exception]) -> None:
    def refuse(body: object) -> asyncio.Task[None]:
        raise error("shutting down")

    async with Harness(Device()) as h:
        await h.reset()
        h.runner._create_task = refuse
        await h.start()
        assert isinstance(h.errors.pop(), error)


async def test_a_config_change_interrupts_only_a_live_driver() -> None:
    device = Device()
    async with Harness(device) as h:
        device.config_changed()
        assert h.config_irq.pulses == 1
        await h.reset()
        device.config_changed()
        assert h.config_irq.pulses == 1
        assert h.negotiation.config_generation == 2


async def test_reset_at_every_step_of_a_request_leaks_nothing() -> None:
    """200 rounds: the device is reset after each possible number of turns of the loop; the next request is served. At the
    end nothing is left that only the garbage collector would find: guest memory goes when its VM does."""
    gc.collect()  # what earlier tests left in reference cycles is not ours
    gc.disable()
    try:
        gc.collect()  # of what earlier tests have dropped
        fds = len(os.listdir("/proc/self/fd"))
        tasks = len(asyncio.all_tasks())
        await reset_in_rounds(200)
        assert len(asyncio.all_tasks()) == tasks
        assert len(os.listdir("/proc/self/fd")) == fds
    finally:
        gc.enable()


async def reset_in_rounds(rounds: int) -> None:
    device = Device()
    async with Harness(device) as h:
        for i in range(rounds):
            for _ in range(3):
                h.queues[0].add([b"x"], [1])
            h.queues[0].kick()
            for _ in range(i % 12):
                await asyncio.sleep(0)
            await h.reset()
            await h.start()
            assert await h.request(0, [b"%d" % i], [3]) == b"%d" % i
        assert device.running == 1
